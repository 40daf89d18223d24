"""The command that measures a checkpoint on held-out pairs.

python -m ttm_jax.evaluate runs/quick
"""

import sys

from ttm_jax.grid import make_evaluation_parser, run_evaluation
from ttm_jax.inference import load
from ttm_jax.run_folder import provenance


def main(argv: list[str] | None = None) -> int:
    parser = make_evaluation_parser("ttm_jax", "runs/quick")
    return run_evaluation(parser, parser.parse_args(argv), load, provenance)


if __name__ == "__main__":
    sys.exit(main())
