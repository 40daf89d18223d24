"""Runs side by side: what differs in their configs, how long they took, what they reached.

python -m ttm_jax.compare runs/* --out results/quick_variants.json
"""

import sys

from ttm_jax.cli import door

main = door("ttm_jax.measure.compare")

if __name__ == "__main__":
    sys.exit(main())
