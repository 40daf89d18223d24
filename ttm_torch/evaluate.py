"""The command that measures a checkpoint of the twin by its own task, as multiplication on held-out pairs.

python -m ttm_torch.evaluate runs/default-torch
"""

import sys

from ttm_jax.cli import command


@command
def main(argv: list[str] | None = None) -> int:
    from ttm_jax.tasks import evaluate

    return evaluate("ttm_torch", sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
