"""What the commands share: one-line errors with exit code 2, output that may end at any time, and progress."""

import argparse
import difflib
import errno
import functools
import importlib
import io
import math
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from types import FrameType
from typing import NoReturn, ParamSpec, TextIO

from ttm_jax import __version__

LINE_EVERY_SECONDS = 10.0


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with the flag that was probably meant."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)
        self.add_argument("--version", action="version", version=f"token-turing-machine {__version__}")

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            self.error(f"unknown argument {flag}" + (f"; did you mean {close[0]}?" if close else ""))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help lists what there is\n")


Arguments = ParamSpec("Arguments")

_STOPPED = "error: stopped by Ctrl-C"
# What the machine is short of; an error of another kind is ours, and its traceback tells where.
_SHORT = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EMFILE, errno.ENFILE, errno.EROFS, errno.EIO}


@contextmanager
def _ended_by_interrupt() -> Generator[None]:
    """Let Ctrl-C end the process at once: imports and JAX's callbacks lose a KeyboardInterrupt, or break by it."""

    def end(number: int, frame: FrameType | None) -> None:
        try:
            os.write(2, f"{_STOPPED}\n".encode())
        finally:  # where no one reads it, too
            os._exit(130)

    handler = signal.getsignal(signal.SIGINT)
    if handler is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)


def command(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """Make the main function of a command one that ends as Unix tools do, with at most one line where it can't go on.

    Output reaches a pipe line by line. A character that its encoding lacks is replaced. Where no one reads it any more
    the command ends in silence. What is to be done at Ctrl-C is an affair of `main`, which then sets a handler.
    """

    @functools.wraps(main)
    @_ended_by_interrupt()
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace", line_buffering=True)
        try:
            return _in_one_line(lambda: main(*args, **kwargs))
        except (BrokenPipeError, SystemExit) as error:
            if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):  # as Rich has it
                raise
            for stream in filter(None, (sys.stdout, sys.stderr)):
                try:
                    stream.flush()
                except BrokenPipeError:  # what is left goes nowhere, or the interpreter's own flush would tell of it
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            return 141  # as the shell has it of a tool that SIGPIPE ended

    return run


def _in_one_line(act: Callable[[], int]) -> int:
    """Act, and say in one line why it can't go on; return the exit code."""
    try:
        try:
            return act()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
    except KeyboardInterrupt:
        print(_STOPPED, file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno not in _SHORT:
            raise
        print(f"error: {error.filename or 'output'}: {error.strerror}", file=sys.stderr)
        return 1
    except (RuntimeError, AssertionError):  # with either JAX says that there is no device
        if (platforms := _missing_platforms()) is None:
            raise
        print(f"error: JAX_PLATFORMS={platforms}: JAX finds no such device here", file=sys.stderr)
        return 1


def door(module: str) -> Callable[..., int]:
    """Make a command of the main function of a module, which is imported when the command has begun."""

    @command
    def main(argv: Sequence[str] | None = None) -> int:
        return importlib.import_module(module).main(argv)

    return main


def _missing_platforms() -> str | None:
    """The platforms that JAX was told to compute on, where none of them is here."""
    if (jax := sys.modules.get("jax")) is None:
        return None
    try:
        jax.devices()
    except (RuntimeError, AssertionError):
        return jax.config.jax_platforms
    return None


class _Lasting(io.FileIO):
    """A file that goes on where it cannot be written: its reader is gone, the terminal closed, the disk full."""

    def write(self, data) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


@contextmanager
def lasting_output() -> Generator[None]:
    """Let nothing that cannot be printed end what is done meanwhile."""
    with redirect_stdout(_lasting(sys.stdout)), redirect_stderr(_lasting(sys.stderr)):
        yield


def _lasting(stream: TextIO) -> TextIO:
    buffer = getattr(stream, "buffer", None)
    if not isinstance(getattr(buffer, "raw", buffer), io.FileIO):  # PYTHONUNBUFFERED leaves the buffer out
        return stream  # not a file: of a notebook or a test
    file = io.BufferedWriter(_Lasting(stream.fileno(), "w", closefd=False))
    return io.TextIOWrapper(file, stream.encoding, errors="replace", line_buffering=True)


def fail(parser: argparse.ArgumentParser, message: object, code: int = 2) -> int:
    """Print one line on stderr and return the exit code."""
    print(f"{parser.prog}: error: {message}", file=sys.stderr)
    return code


def positive_int(text: str) -> int:
    """Read a count, as a type of argparse."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return value


def this_python() -> str:
    """Say what starts this interpreter from here: "python" where the shell finds it by that name, else its path."""
    if shutil.which("python") == sys.executable:
        return "python"
    executable, here = Path(sys.executable), Path.cwd()
    return str(executable.relative_to(here) if executable.is_relative_to(here) else executable)


def clock(seconds: float) -> str:
    """Say seconds as "4:05" or "1:04:05"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Progress:
    """The steps that are planned and begun; `show` is called with (begun, planned, what) to show them."""

    def __init__(self, show: Callable[[int, int, str], None] = lambda *_: None):
        self.planned = self.begun = 0
        self._show = show

    def plan(self, steps: int) -> None:
        """Add steps to those that are to come."""
        self.planned += steps

    def step(self, what: str) -> None:
        """Begin one of the planned steps."""
        self.begun += 1
        self.say(what)

    def say(self, what: str) -> None:
        """Say what is being done in the step that has begun."""
        self._show(self.begun, self.planned, what)


@contextmanager
def show_progress() -> Generator[Progress, None, None]:
    """Show progress on stderr: a bar on a terminal, below all that is printed; else a line every ten seconds."""
    if not sys.stderr.isatty():
        last = -math.inf

        def print_line(begun: int, planned: int, what: str) -> None:
            nonlocal last
            if time.monotonic() - last >= LINE_EVERY_SECONDS:
                last = time.monotonic()
                print(f"{begun}/{planned}  {what}", file=sys.stderr, flush=True)

        yield Progress(print_line)
        return
    from rich.console import Console  # here alone: most commands show no bar
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress as Bar,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        *(BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn()),
        TextColumn("{task.fields[what]}"),
    )
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.console.show_cursor()  # a command that is ended at once by Ctrl-C leaves it so
        task = bar.add_task("", total=None, what="")
        yield Progress(lambda begun, planned, what: bar.update(task, total=planned, completed=begun - 1, what=what))
