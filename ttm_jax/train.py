"""Training in JAX, and its command.

python -m ttm_jax.train                                  # two CPU cores, a few minutes
python -m ttm_jax.train --config multiplication          # the checklist's sizes
python -m ttm_jax.train --workdir runs/default --resume    # go on
python -m ttm_jax.train --devices 1                      # not divided between the cores, or GPUs
"""

import sys
from functools import partial

from ttm_jax.cli import Parser, positive_int
from ttm_jax.hardware.allocator import keep_freed_memory
from ttm_jax.training.command import make_training_parser, resolve, run_training
from ttm_jax.training.jax_engine import Trainer
from ttm_jax.training.loop import NonFiniteLoss
from ttm_jax.training.mesh import divide_processor

__all__ = ["NonFiniteLoss", "Trainer", "main", "make_parser", "resolve"]


def make_parser() -> Parser:
    """The command line; every key of the config is a dotted flag."""
    parser = make_training_parser("ttm_jax")
    parser.add_argument(
        "--devices",
        type=positive_int,
        metavar="N",
        help="how many devices divide each batch between them (default: the cores of a CPU, or one accelerator)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    keep_freed_memory()
    divide_processor(args.devices)
    kept_flags = ["--devices", str(args.devices)] if args.devices else []
    return run_training(parser, args, partial(Trainer, num_devices=args.devices), kept_flags)


if __name__ == "__main__":
    sys.exit(main())
