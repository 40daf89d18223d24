"""The command that trains, the same for both twins: its flags, the config that they ask for, Ctrl-C, what it prints."""

import argparse
import contextlib
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ttm_jax.cli import Parser, fail, lasting_output, this_python
from ttm_jax.files import FileError, user_path
from ttm_jax.tasks import load_config, make_task
from ttm_jax.training.checkpoint_files import CheckpointError
from ttm_jax.training.config import ConfigError, config_keys, describe, flag_of, flat_values, override, show_value
from ttm_jax.training.display import make_display
from ttm_jax.training.loop import Ended, Event, NonFiniteLoss, Started
from ttm_jax.training.plan import OutOfMemory
from ttm_jax.training.run_folder import RunFolder
from ttm_jax.training.task import Task

DEFAULT_CONFIG = "default"

# Of config, task, run folder, whether to resume, the question whether to stop, and the checkpoint to start from.
Start = Callable[[Any, Task, Path, bool, Callable[[], bool], str | None], Iterator[Event]]


# Ctrl-C, an end asked for, a closed terminal, and what clusters send before they end a job.
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")


class StopSignal:
    """Turns `SIGNALS` into a request; a second Ctrl-C interrupts at once. One that nohup has turned off stays off."""

    def __init__(self) -> None:
        self.requested = False
        for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
            if number == signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, signum: int, frame: object) -> None:
        if self.requested and signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a third ends the process in silence
            raise KeyboardInterrupt
        if not self.requested:
            self.requested = True
            with contextlib.suppress(RuntimeError):  # in the middle of another line on stderr
                print("stopping: the step is finished and saved first (Ctrl-C again: at once)", file=sys.stderr)


def make_training_parser(package: str, argv: Sequence[str] | None = None, run_name: str = "{name}") -> Parser:
    """Make the command line of `package`.train; every key of the config is a dotted flag.

    The keys are those of the task of the config that `argv` names. `run_name` is that of the run folder where none is
    given, of the config's {name}.
    """
    parser = Parser(
        prog=f"python -m {package}.train",
        usage="%(prog)s [--config CONFIG] [--workdir WORKDIR] [--resume | --init CHECKPOINT] [--SECTION.KEY VALUE ...]",
        description="Trains a Token Turing Machine.",
        epilog=f"example: python -m {package}.train --config multiplication --workdir runs/big --model.memory-size 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(package=package, run_name=run_name)
    _add_choice_of_config(parser, run_name.format(name="NAME"))
    known = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    _add_choice_of_config(known, "")
    try:
        named, _ = known.parse_known_args([] if argv is None else argv, argparse.Namespace(run_name=run_name))
        name, config = named.config or DEFAULT_CONFIG, resolve(named)[0]
    except (argparse.ArgumentError, ConfigError):  # said when the flags are parsed and resolved
        name, config = DEFAULT_CONFIG, load_config(DEFAULT_CONFIG)
    keys = parser.add_argument_group("config", f"override a key of the config; its value in {name} is in brackets")
    values = flat_values(config)
    for key, hint in config_keys(type(config)).items():
        words = f"{describe(hint)} ({show_value(values[key])})".replace("%", "%%")
        keys.add_argument(flag_of(key), dest=key, metavar="VALUE", default=argparse.SUPPRESS, help=words)
    return parser


def _add_choice_of_config(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--config", help=f"a TOML file, or the name of a shipped config (default: {DEFAULT_CONFIG})")
    parser.add_argument("--workdir", help=f"the run folder (default: runs/{default} of the config)")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--resume", action="store_true", help="go on from the latest checkpoint of the run folder")
    start.add_argument("--init", metavar="CHECKPOINT", help="start from its parameters; all else is the config's")


def resolve(args: argparse.Namespace) -> tuple[Any, Path]:
    """Give the config and the run folder that the flags ask for.

    Raises:
        ConfigError: naming the file or flag.
    """
    overrides = {key: value for key, value in vars(args).items() if "." in key}
    name = DEFAULT_CONFIG if args.config is None else args.config
    stem = Path(name).with_suffix("").name if name.endswith(".toml") else name.replace("/", "-")
    workdir = user_path(args.workdir or f"runs/{args.run_name.format(name=stem)}")
    if args.resume and args.config is None:
        saved = RunFolder(workdir).config_path
        if not saved.exists():
            raise ConfigError(f"--resume: {workdir} is no run folder: it has no config.toml")
        return override(load_config(saved), overrides), workdir
    return override(load_config(name), overrides), workdir


def run_training(parser: Parser, args: argparse.Namespace, start: Start, kept_flags: Sequence[str] = ()) -> int:
    """Train as the flags ask, telling what happens; give the exit code.

    Args:
        parser: as of `make_training_parser`.
        args: what it read.
        start: gives the events of a run.
        kept_flags: what the command that goes on has to say again.
    """
    with lasting_output():
        return _train(parser, args, start, kept_flags)


def _train(parser: Parser, args: argparse.Namespace, start: Start, kept_flags: Sequence[str]) -> int:
    stop = StopSignal()
    try:
        config, workdir = resolve(args)
        task = make_task(config)
        events = start(config, task, workdir, args.resume, lambda: stop.requested, args.init)
        started = next(events)
    except (ConfigError, CheckpointError, FileError) as error:
        return fail(parser, error)
    except OutOfMemory as error:
        return fail(parser, error, 1)
    except OSError as error:
        return fail(parser, f"{error.filename}: {error.strerror}")

    assert isinstance(started, Started)
    print(f"{started.model}; run folder {workdir}", flush=True)
    event: Event = started
    with make_display(task, started) as display:
        try:
            for event in events:
                display.show(event)
        except (NonFiniteLoss, OutOfMemory, CheckpointError) as error:
            return fail(parser, error, 1)
        except (FileError, OSError) as error:
            return fail(parser, f"{error}; --resume goes on from the latest checkpoint", 1)
        except KeyboardInterrupt:
            return fail(parser, f"stopped at once; --resume goes on from the latest checkpoint of {workdir}", 130)

    assert isinstance(event, Ended)
    print(f"{event.how}: {event.step:,} steps, {event.examples:,} examples, {event.seconds:.0f} s")
    print(f"curves: {workdir / 'curves.png'}")
    command = [this_python(), "-m"]
    if event.how == "interrupted":
        command += [f"{args.package}.train", "--workdir", str(workdir), "--resume", *kept_flags]
        print(f"go on:  {shlex.join(command)}")
    else:
        print(f"measure: {shlex.join([*command, f'{args.package}.evaluate', str(workdir)])}")
    return 0
