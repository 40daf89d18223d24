"""Measurements of this machine: what it is, what it can do, and what the Token Turing Machine makes of it.

python -m ttm_jax.benchmark --quick
"""

import sys

from ttm_jax.cli import door

main = door("ttm_jax.measure.benchmark")

if __name__ == "__main__":
    sys.exit(main())
