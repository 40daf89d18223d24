"""The command that trains in JAX: `python -m ttm_jax.train`."""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ttm_jax.cli import Parser, positive_int
from ttm_jax.hardware.allocator import keep_freed_memory
from ttm_jax.tasks import make_objective
from ttm_jax.training.command import make_training_parser, run_training
from ttm_jax.training.jax_engine import JaxEngine
from ttm_jax.training.loop import Event, train
from ttm_jax.training.mesh import divide_processor
from ttm_jax.training.task import Task


def start(
    config: Any,
    task: Task,
    workdir: str | Path,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    init: str | Path | None = None,
    num_devices: int | None = None,
) -> Iterator[Event]:
    """Give the events of a run in JAX; see `ttm_jax.training.loop.train`."""
    engine = JaxEngine(make_objective(config), config.optimizer, config.train.seed, task.batch_size, num_devices)
    yield from train(config, task, engine, workdir, resume, stop, init)


def make_parser(argv: Sequence[str] | None = None) -> Parser:
    """Make the command line; every key of the config that `argv` names is a dotted flag."""
    parser = make_training_parser("ttm_jax", argv)
    parser.add_argument(
        "--devices",
        type=positive_int,
        metavar="N",
        help="how many devices divide each batch between them (default: the cores of a CPU, or one accelerator)",
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    keep_freed_memory()
    divide_processor(args.devices)
    kept_flags = ["--devices", str(args.devices)] if args.devices else []
    return run_training(parser, args, partial(start, num_devices=args.devices), kept_flags)
