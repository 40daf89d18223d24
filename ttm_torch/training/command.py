"""The command that trains in PyTorch: `python -m ttm_torch.train`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ttm_jax.cli import Parser
from ttm_jax.hardware.allocator import keep_freed_memory
from ttm_jax.tasks import make_objective
from ttm_jax.training.command import make_training_parser, run_training
from ttm_jax.training.loop import Event, train
from ttm_jax.training.task import Task
from ttm_torch.training.device import add_device_flag, find_device
from ttm_torch.training.torch_engine import TorchEngine


def start(
    config: Any,
    task: Task,
    workdir: str | Path,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    init: str | Path | None = None,
    device: str | None = None,
) -> Iterator[Event]:
    """Yield the events of a run in PyTorch; see `ttm_jax.training.loop.train`.

    `device` is "cpu" or "cuda"; where None, a GPU if there is one.
    """
    objective = make_objective(config, "ttm_torch")
    engine = TorchEngine(objective, config.optimizer, config.train.seed, task.batch_size, find_device(device))
    yield from train(config, task, engine, workdir, resume, stop, init)


def make_parser(argv: Sequence[str] | None = None) -> Parser:
    """Make the command line; every key of the config that `argv` names is a dotted flag."""
    parser = make_training_parser("ttm_torch", argv, run_name="{name}-torch")
    add_device_flag(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    kept_flags = ["--device", args.device] if args.device else []
    keep_freed_memory(jax=False)
    return run_training(parser, args, partial(start, device=args.device), kept_flags)
