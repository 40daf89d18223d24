"""The demo: a trained network multiplies what is typed, and shows how.

python -m ttm_jax.demo
python -m ttm_jax.demo '123*45'
"""

import sys

from ttm_jax.cli import door

main = door("ttm_jax.multiplication.demo.command")

if __name__ == "__main__":
    sys.exit(main())
