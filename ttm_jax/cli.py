"""What the commands share: one-line errors with exit code 2."""

import argparse
import difflib
import shutil
import sys
from pathlib import Path
from typing import NoReturn


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
    """Prints one line on stderr and gives the exit code."""
    print(f"{parser.prog}: error: {message}", file=sys.stderr)
    return code


def positive_int(text: str) -> int:
    """The argparse type of counts."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a positive integer, got {text!r}")
    return value


def this_python() -> str:
    """What starts this interpreter from here: "python" where the shell finds it by that name, else its path."""
    if shutil.which("python") == sys.executable:
        return "python"
    executable, here = Path(sys.executable), Path.cwd()
    return str(executable.relative_to(here) if executable.is_relative_to(here) else executable)


def clock(seconds: float) -> str:
    """Say seconds as "4:05" or "1:04:05"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
