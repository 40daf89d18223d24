"""Measurements of this machine: what it is, what it can do, and what the Token Turing Machine makes of it.

python -m ttm_jax.benchmark --quick
"""

import sys

from ttm_jax.measure.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
