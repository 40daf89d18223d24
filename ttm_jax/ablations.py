"""What each part of the multiplier is worth: the same training with one thing changed at a time, several seeds each.

python -m ttm_jax.ablations
"""

import sys

from ttm_jax.measure.ablations import main

if __name__ == "__main__":
    sys.exit(main())
