"""The command that proves the JAX library and its PyTorch twin equal: `python -m parity`."""

import sys

from ttm_jax.cli import command


@command
def main() -> int:
    """Run `parity.command.main`; Ctrl-C gets one line even while packages are imported, which takes seconds."""
    try:
        from parity.command import main as run

        return run()
    except KeyboardInterrupt:
        print("python -m parity: error: stopped before all was compared", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
