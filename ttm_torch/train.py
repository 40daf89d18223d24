"""Training in PyTorch, and its command: the loop, the data and the run folder of `ttm_jax.train`.

python -m ttm_torch.train                                      # the default config
python -m ttm_torch.train --config multiplication              # the checklist's sizes
python -m ttm_torch.train --workdir runs/default-torch --resume  # go on
"""

import sys
from functools import partial

from ttm_jax.cli import Parser
from ttm_jax.hardware.allocator import keep_freed_memory
from ttm_jax.training.command import make_training_parser, resolve, run_training
from ttm_jax.training.loop import NonFiniteLoss
from ttm_torch.training.device import add_device_flag
from ttm_torch.training.torch_engine import Trainer

__all__ = ["NonFiniteLoss", "Trainer", "main", "make_parser", "resolve"]


def make_parser() -> Parser:
    """The command line; every key of the config is a dotted flag."""
    parser = make_training_parser("ttm_torch", run_name="{name}-torch")
    add_device_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    kept_flags = ["--device", args.device] if args.device else []
    keep_freed_memory(jax=False)
    return run_training(parser, args, partial(Trainer, device=args.device), kept_flags)


if __name__ == "__main__":
    sys.exit(main())
