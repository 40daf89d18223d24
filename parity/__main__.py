"""The command that proves the JAX library and its PyTorch twin equal: `python -m parity`."""

import sys

from ttm_jax.cli import door

main = door("parity.command")

if __name__ == "__main__":
    sys.exit(main())
