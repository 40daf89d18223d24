"""The command `python -m parity.scenic`."""

import sys

from ttm_jax.cli import door

main = door("parity.scenic.command")

if __name__ == "__main__":
    sys.exit(main())
