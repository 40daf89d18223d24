"""The command that lets a language model write on.

python -m ttm_jax.generate runs/text-quick --prompt 'import '
"""

import sys

from ttm_jax.text.generate import main

if __name__ == "__main__":
    sys.exit(main())
