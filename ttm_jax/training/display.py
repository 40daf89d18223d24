"""What a training shows of its events: a live screen on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ttm_jax.cli import clock
from ttm_jax.training.loop import Evaluated, Event, FellBack, Said, Started, Stepped, Trained
from ttm_jax.training.task import Example, Record, Task


class Display(Protocol):
    """Shows events as they come."""

    def __enter__(self) -> "Display": ...
    def __exit__(self, *error: object) -> None: ...
    def show(self, event: Event) -> None:
        """Show an event, or leave it out."""
        ...


class PlainDisplay:
    """Lines on stdout, a few a minute."""

    def __init__(self, task: Task, total_steps: int, line_every_seconds: float = 10.0):
        self._task, self._total_steps = task, total_steps
        self._line_every_seconds = line_every_seconds
        self._rate: float | None = None
        self._last_line = time.perf_counter()

    def __enter__(self) -> "PlainDisplay":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def show(self, event: Event) -> None:
        match event:
            case Said(text) | FellBack(_, text):
                print(text, flush=True)
            case Stepped(_, rate):
                self._rate = rate or self._rate
            case Trained(record):
                self._show_training(record)
            case Evaluated(record, examples):
                found = self._task.describe_evaluation(record)
                print(f"evaluation at step {record['step']}, {clock(record['seconds'])}: {found}", flush=True)
                for problem, answer, truth in examples:
                    verdict = "" if truth is None else "  right" if answer == truth else f"  wrong, {truth}"
                    print(f"    {problem} {answer}{verdict}", flush=True)

    def _show_training(self, record: Record) -> None:
        now = time.perf_counter()
        if now - self._last_line < self._line_every_seconds:
            return
        self._last_line = now
        line = f"step {record['step']}/{self._total_steps}  {_training_line(self._task, record, self._rate)}"
        if self._rate is not None:
            examples_left = (self._total_steps - record["step"]) * record["examples"] / record["step"]
            line += f"  {clock(examples_left / self._rate)} left"
        print(line, flush=True)


class LiveDisplay:
    """A progress bar, the task's table and examples, redrawn in place."""

    def __init__(self, task: Task, total_steps: int, start_step: int = 0, console: Console | None = None):
        self._task = task
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            expand=True,
        )
        self._bar = self._progress.add_task("", total=total_steps, completed=start_step, rate="compiling")
        self._line = Text("")
        self._found: Group = Group()
        self._history: list[Record] = []
        self._live = Live(self._view(), console=console, refresh_per_second=4)

    def __enter__(self) -> "LiveDisplay":
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)

    def show(self, event: Event) -> None:
        match event:
            case Said(text) | FellBack(_, text):
                self._live.console.print(text, highlight=False, soft_wrap=True)
            case Stepped(step, rate):
                self._progress.update(self._bar, completed=step)
                if rate is not None:
                    self._progress.update(self._bar, rate=f"{rate:,.0f} examples/s")
            case Trained(record):
                self._line = Text(_training_line(self._task, record, None), style="dim")
                self._live.update(self._view())
            case Evaluated(record, examples):
                self._history.append(record)
                lines = [Text.assemble(f"  {e.problem} {e.answer} ", *_verdict(e)) for e in examples]
                self._found = Group(self._table(), *lines)
                self._live.update(self._view())

    def _table(self) -> Table | Text:
        latest = self._history[-1]
        where = f"at step {latest['step']}, {clock(latest['seconds'])}"
        found = self._task.table(self._history)
        if found is None:
            return Text(f"{where}: {self._task.describe_evaluation(latest)}")
        table = Table(title=f"{found.title} {where}", title_justify="left")
        for heading in found.headings:
            table.add_column(heading, justify="right")
        for row in found.rows:
            table.add_row(*row)
        return table

    def _view(self) -> Group:
        return Group(self._progress, self._line, self._found)  # a low screen cuts off the end


def make_display(task: Task, started: Started) -> Display:
    """Make the live screen where stdout is a terminal, plain lines where it is not."""
    if sys.stdout.isatty():
        return LiveDisplay(task, started.total_steps, started.step)
    return PlainDisplay(task, started.total_steps)


def _training_line(task: Task, record: Record, rate: float | None) -> str:
    parts = [f"loss {record['loss']:.4f}", f"rate {record['learning_rate']:.2e}"]
    if rate is not None:
        parts.append(f"{rate:,.0f} examples/s")
    return "  ".join([*parts, task.describe_training(record)])


def _verdict(example: Example) -> list[tuple[str, str] | str]:
    if example.truth is None:
        return []
    return [("✓", "bold green")] if example.answer == example.truth else [("✗", "bold red"), f" {example.truth}"]
