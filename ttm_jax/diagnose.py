"""The command that looks for the causes of a checkpoint's wrong answers.

python -m ttm_jax.diagnose multiplication 3x3 4x4
"""

import sys

from ttm_jax.cli import door

main = door("ttm_jax.multiplication.diagnose")

if __name__ == "__main__":
    sys.exit(main())
