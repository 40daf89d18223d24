"""What a training shows: a live screen on a terminal, plain lines elsewhere."""

import sys
import time
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ttm_jax.multiplication.metrics import wilson_interval

# The checklist's marks for held-out exact match, by operand lengths.
MARKS = {"1x1": 0.95, "2x1": 0.90, "2x2": 0.85, "3x2": 0.80}


class Display(Protocol):
    """What the training loop tells; records are those of `metrics.jsonl`."""

    def __enter__(self) -> "Display": ...
    def __exit__(self, *error: object) -> None: ...
    def message(self, text: str) -> None:
        """One line that stays."""

    def step(self, step: int, examples_per_second: float | None) -> None:
        """A step was dispatched."""

    def train(self, record: dict[str, Any]) -> None:
        """A window of training steps has ended."""

    def evaluation(self, record: dict[str, Any], examples: list[tuple[str, str, str]]) -> None:
        """An evaluation, with examples as (problem, answer, right answer)."""


class PlainDisplay:
    """Lines on stdout, a few a minute."""

    def __init__(self, total_steps: int, line_every_seconds: float = 10.0):
        self._total_steps = total_steps
        self._line_every_seconds = line_every_seconds
        self._rate: float | None = None
        self._last_line = time.perf_counter()

    def __enter__(self) -> "PlainDisplay":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def message(self, text: str) -> None:
        print(text, flush=True)

    def step(self, step: int, examples_per_second: float | None) -> None:
        self._rate = examples_per_second or self._rate

    def train(self, record: dict[str, Any]) -> None:
        now = time.perf_counter()
        if now - self._last_line < self._line_every_seconds:
            return
        self._last_line = now
        line = f"step {record['step']}/{self._total_steps}  {_training_line(record, self._rate)}"
        if self._rate is not None:
            examples_left = (self._total_steps - record["step"]) * record["examples"] / record["step"]
            line += f"  {clock(examples_left / self._rate)} left"
        print(line, flush=True)

    def evaluation(self, record: dict[str, Any], examples: list[tuple[str, str, str]]) -> None:
        print(
            f"evaluation at step {record['step']}, {clock(record['seconds'])}: {_accuracy_line(record)}",
            flush=True,
        )
        for problem, answer, truth in examples:
            print(f"    {problem} = {answer}  {'right' if answer == truth else f'wrong, {truth}'}", flush=True)


class LiveDisplay:
    """A progress bar, the exact-match table by operand lengths and examples, redrawn in place."""

    def __init__(self, total_steps: int, start_step: int = 0, console: Console | None = None):
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            expand=True,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=start_step, rate="compiling")
        self._rate: float | None = None
        self._line = Text("")
        self._table: Group = Group()
        self._history: list[dict[str, Any]] = []
        self._first_met: dict[str, float] = {}
        self._live = Live(self._view(), console=console, refresh_per_second=4)

    def __enter__(self) -> "LiveDisplay":
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)

    def message(self, text: str) -> None:
        self._live.console.print(text, highlight=False, soft_wrap=True)

    def step(self, step: int, examples_per_second: float | None) -> None:
        self._rate = examples_per_second or self._rate
        rate = "compiling" if self._rate is None else f"{self._rate:,.0f} examples/s"
        self._progress.update(self._task, completed=step, rate=rate)

    def train(self, record: dict[str, Any]) -> None:
        self._line = Text(_training_line(record, None), style="dim")
        self._live.update(self._view())

    def evaluation(self, record: dict[str, Any], examples: list[tuple[str, str, str]]) -> None:
        self._history.append(record)
        table = Table(
            title=f"held-out exact match at step {record['step']}, {clock(record['seconds'])}",
            title_justify="left",
        )
        for heading in ("digits", "exact match", "95 % interval", "right/pairs", "mark"):
            table.add_column(heading, justify="right")
        for name, counts in record["exact_match"].items():
            share = counts["correct"] / counts["total"]
            low, high = wilson_interval(counts["correct"], counts["total"])
            if name in MARKS and share > MARKS[name]:
                self._first_met.setdefault(name, record["seconds"])
            table.add_row(
                name,
                f"{100 * share:.1f} %",
                f"{100 * low:.1f} - {100 * high:.1f}",
                f"{counts['correct']}/{counts['total']}",
                self._mark(name),
            )
        lines = [
            Text.assemble(
                f"  {problem} = {answer} ",
                ("✓", "bold green") if answer == truth else (f"✗ {truth}", "bold red"),
            )
            for problem, answer, truth in examples
        ]
        self._table = Group(table, *lines)
        self._live.update(self._view())

    def _mark(self, name: str) -> Text:
        if name not in MARKS:
            return Text("")
        if name in self._first_met:
            return Text(f"> {100 * MARKS[name]:.0f} % ✓ at {clock(self._first_met[name])}", style="green")
        return Text(f"> {100 * MARKS[name]:.0f} %", style="dim")

    def _view(self) -> Group:
        return Group(self._progress, self._line, self._table)  # a low screen cuts off the end


class Throughput:
    """Examples a second over the last ten seconds or so, the first step (compilation) left out."""

    def __init__(self, batch_size: int, span: int = 64):
        self._batch_size, self._span = batch_size, span
        self._times: list[float] = []

    def tick(self) -> float | None:
        self._times = [*self._times[-self._span :], time.perf_counter()]
        if len(self._times) < 4:
            return None
        recent = self._times[2:] if len(self._times) <= self._span else self._times
        return self._batch_size * (len(recent) - 1) / (recent[-1] - recent[0])


def make_display(total_steps: int, start_step: int) -> Display:
    """The live screen where stdout is a terminal, plain lines where it is not."""
    return LiveDisplay(total_steps, start_step) if sys.stdout.isatty() else PlainDisplay(total_steps)


def _training_line(record: dict[str, Any], rate: float | None) -> str:
    parts = [f"loss {record['loss']:.4f}", f"rate {record['learning_rate']:.2e}"]
    if rate is not None:
        parts.append(f"{rate:,.0f} examples/s")
    accuracy = ", ".join(f"{name} {100 * share:.0f}" for name, share in record["train_accuracy"].items())
    return "  ".join([*parts, f"training exact match %: {accuracy}"])


def _accuracy_line(record: dict[str, Any]) -> str:
    cells = []
    for name, counts in record["exact_match"].items():
        share = counts["correct"] / counts["total"]
        met = " (mark met)" if name in MARKS and share > MARKS[name] else ""
        cells.append(f"{name} {100 * share:.1f} % of {counts['total']}{met}")
    return ", ".join(cells)


def clock(seconds: float) -> str:
    """Seconds as "4:05" or "1:04:05"."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
