"""What the commands share: one-line errors with exit code 2, and progress."""

import argparse
import difflib
import math
import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

LINE_EVERY_SECONDS = 10.0


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, with the flag that was probably meant."""

    def __init__(self, **kwargs):
        super().__init__(allow_abbrev=False, **kwargs)

    def parse_args(self, args=None, namespace=None):
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            close = difflib.get_close_matches(flag, self._option_string_actions, n=1)
            self.error(f"unknown argument {flag}" + (f"; did you mean {close[0]}?" if close else ""))
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}; --help lists what there is\n")


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
