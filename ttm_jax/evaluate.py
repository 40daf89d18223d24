"""The command that measures a checkpoint on held-out pairs.

python -m ttm_jax.evaluate runs/default
"""

import sys
from pathlib import Path

from ttm_jax.cli import command
from ttm_jax.multiplication.grid import make_evaluation_parser, run_evaluation
from ttm_jax.multiplication.inside import load_machine
from ttm_jax.multiplication.multiplier import Multiplier, load
from ttm_jax.training.run_folder import provenance


@command
def main(argv: list[str] | None = None) -> int:
    parser = make_evaluation_parser("ttm_jax", "runs/default")
    parser.add_argument("--wipe-memory", action="store_true", help="reset memory before each machine step")
    args = parser.parse_args(argv)
    return run_evaluation(parser, args, _load_wiped if args.wipe_memory else load, provenance, args.wipe_memory)


def _load_wiped(path: Path) -> Multiplier:
    return load_machine(path).without_memory()


if __name__ == "__main__":
    sys.exit(main())
