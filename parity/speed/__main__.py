"""JAX against its PyTorch twin: same weights, same batch, each in its own process, taking turns.

python -m parity.speed
"""

import sys

from ttm_jax.cli import door

main = door("parity.speed.command")

if __name__ == "__main__":
    sys.exit(main())
