"""The command that lets a language model write on.

python -m ttm_jax.generate runs/text-quick --prompt 'import '
"""

import sys

from ttm_jax.cli import door

main = door("ttm_jax.text.generate")

if __name__ == "__main__":
    sys.exit(main())
