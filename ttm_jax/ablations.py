"""What each part of the multiplier is worth: the same training with one thing changed at a time, several seeds each.

python -m ttm_jax.ablations
"""

import sys

from ttm_jax.cli import door

main = door("ttm_jax.measure.ablations")

if __name__ == "__main__":
    sys.exit(main())
