"""The command that trains, the same for both twins: its flags, the config that they ask for, Ctrl-C, what it prints."""

import argparse
import json
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ttm_jax.cli import Parser, fail, this_python
from ttm_jax.training.checkpoint_files import CheckpointError
from ttm_jax.training.config import (
    Config,
    ConfigError,
    config_keys,
    describe,
    find_config,
    flag_of,
    flat_values,
    load_config,
    override,
)
from ttm_jax.training.display import make_display
from ttm_jax.training.loop import NonFiniteLoss, TrainingLoop
from ttm_jax.training.plan import OutOfMemory
from ttm_jax.training.run_folder import RunFolder

DEFAULT_CONFIG = "default"


class StopSignal:
    """Turns Ctrl-C and SIGTERM into a request; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, signum: int, frame: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopping: the step is finished and saved first (Ctrl-C again: at once)", file=sys.stderr)


def make_training_parser(package: str, run_name: str = "{name}") -> Parser:
    """The command line of `package`.train; every key of the config is a dotted flag.

    `run_name` is that of the run folder where none is given, of the config's {name}.
    """
    parser = Parser(
        prog=f"python -m {package}.train",
        description="Trains a Token Turing Machine to multiply numbers.",
        epilog=f"example: python -m {package}.train --config multiplication --workdir runs/big --model.memory-size 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(package=package, run_name=run_name)
    parser.add_argument("--config", help=f"a TOML file, or the name of a shipped config (default: {DEFAULT_CONFIG})")
    default = run_name.format(name="NAME")
    parser.add_argument("--workdir", help=f"the run folder (default: runs/{default} of the config)")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint of the run folder")
    keys = parser.add_argument_group(
        "config", f"override a key of the config; its value in {DEFAULT_CONFIG} is in brackets"
    )
    values = flat_values(load_config(find_config(DEFAULT_CONFIG)))
    for key, hint in config_keys().items():
        value = json.dumps(values[key]).strip('"')
        words = f"{describe(hint)} ({'none' if value == 'null' else value})"
        keys.add_argument(flag_of(key), dest=key, metavar="VALUE", default=argparse.SUPPRESS, help=words)
    return parser


def resolve(args: argparse.Namespace) -> tuple[Config, Path]:
    """The config and the run folder that the flags ask for.

    Raises:
        ConfigError: naming the file or flag.
    """
    overrides = {key: value for key, value in vars(args).items() if "." in key}
    name = DEFAULT_CONFIG if args.config is None else args.config
    workdir = Path(args.workdir or f"runs/{args.run_name.format(name=Path(name).stem)}")
    if args.resume and args.config is None:
        saved = RunFolder(workdir).config_path
        if not saved.exists():
            raise ConfigError(f"--resume: {workdir} is no run folder: it has no config.toml")
        return override(load_config(saved), overrides), workdir
    return override(load_config(find_config(name)), overrides), workdir


def run_training(
    parser: Parser,
    args: argparse.Namespace,
    make_trainer: Callable[[Config, Path, bool, Callable[[], bool]], TrainingLoop],
    kept_flags: Sequence[str] = (),
) -> int:
    """Trains as the flags ask, telling what happens; the exit code.

    Args:
        parser: as of `make_training_parser`.
        args: what it read.
        make_trainer: of config, run folder, whether to resume, and the question whether to stop.
        kept_flags: what the command that goes on has to say again.
    """
    stop = StopSignal()
    try:
        config, workdir = resolve(args)
        trainer = make_trainer(config, workdir, args.resume, lambda: stop.requested)
    except (ConfigError, CheckpointError) as error:
        return fail(parser, error)
    except OSError as error:
        return fail(parser, f"{error.filename}: {error.strerror}")

    with make_display(trainer.total_steps, trainer.progress.step) as display:
        display.message(f"{trainer.describe_model()}; run folder {workdir}")
        try:
            ended = trainer.run(display)
        except (NonFiniteLoss, OutOfMemory, CheckpointError) as error:
            return fail(parser, error, 1)
        except KeyboardInterrupt:
            return fail(parser, f"stopped at once; --resume goes on from the latest checkpoint of {workdir}", 130)

    progress = trainer.progress
    print(
        f"{ended}: {progress.step:,} steps, {progress.step * config.data.batch_size:,} examples, "
        f"{progress.seconds:.0f} s"
    )
    print(f"curves: {workdir / 'curves.png'}")
    command = [this_python(), "-m"]
    if ended == "interrupted":
        command += [f"{args.package}.train", "--workdir", str(workdir), "--resume", *kept_flags]
        print(f"go on:  {shlex.join(command)}")
    else:
        print(f"grid:   {shlex.join([*command, f'{args.package}.evaluate', str(workdir)])}")
    return 0
