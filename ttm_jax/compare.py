"""Runs side by side: what differs in their configs, how long they took, what they reached.

python -m ttm_jax.compare runs/* --out results/quick_variants.json
"""

import sys

from ttm_jax.measure.compare import main

if __name__ == "__main__":
    sys.exit(main())
