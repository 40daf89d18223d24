"""The command that measures a checkpoint by its own task, as multiplication on held-out pairs.

python -m ttm_jax.evaluate runs/default
"""

import sys

from ttm_jax.cli import command


@command
def main(argv: list[str] | None = None) -> int:
    from ttm_jax.tasks import evaluate

    return evaluate("ttm_jax", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
