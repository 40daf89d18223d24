"""How far a measurement is: a bar on a terminal, a line every ten seconds elsewhere; always on stderr."""

import sys
import time
from collections.abc import Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

LINE_EVERY_SECONDS = 10.0


class Progress:
    """Told what is planned and what is begun; shows nothing."""

    def __init__(self) -> None:
        self.planned = self.begun = 0

    def plan(self, steps: int) -> None:
        """So many more steps are to come."""
        self.planned += steps

    def step(self, what: str) -> None:
        """One of the planned steps begins."""
        self.begun += 1


class _Lines(Progress):
    def __init__(self) -> None:
        super().__init__()
        self._last = -LINE_EVERY_SECONDS

    def step(self, what: str) -> None:
        super().step(what)
        if time.monotonic() - self._last >= LINE_EVERY_SECONDS:
            self._last = time.monotonic()
            print(f"{self.begun}/{self.planned}  {what}", file=sys.stderr, flush=True)


class _Live(Progress):
    def __init__(self, bar: Bar) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task("", total=None, what="")

    def plan(self, steps: int) -> None:
        super().plan(steps)
        self._bar.update(self._task, total=self.planned)

    def step(self, what: str) -> None:
        super().step(what)
        self._bar.update(self._task, completed=self.begun - 1, what=what)


@contextmanager
def show_progress() -> Generator[Progress, None, None]:
    """The bar where stderr is a terminal, lines where it is not."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[what]}"))
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        yield _Live(bar)
