"""What the trainer asks of a task: batches, what their metrics mean, evaluations, when to go on and when to stop.

NumPy only, so that the same object serves both twins. `docs/tasks.md` walks through a small one.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

Arrays = dict[str, np.ndarray]
Record = dict[str, Any]  # plain values, as a line of metrics.jsonl holds them
Predict = Callable[[Arrays], Arrays]


class Batch(NamedTuple):
    """What one optimiser step is taken on.

    Attributes:
        arrays: what the objective takes, by name; the first axis of each is B.
        labels: of each example [B], for the task's own books.
    """

    arrays: Arrays
    labels: np.ndarray | None = None


class Example(NamedTuple):
    """A question of an evaluation, what the network said, and what would have been right, where anything would."""

    problem: str
    answer: str
    truth: str | None = None


class Evaluation(NamedTuple):
    """What an evaluation found.

    Attributes:
        record: what is written to metrics.jsonl.
        score: the higher the better.
        examples: a few, to be shown.
    """

    record: Record
    score: float
    examples: Sequence[Example] = ()


class Verdict(NamedTuple):
    """What follows from the end of an epoch.

    Attributes:
        improved: whether the evaluation is the best so far, so that its checkpoint is kept.
        stop: whether the run ends here.
        message: one line on what changes from now on.
    """

    improved: bool = False
    stop: bool = False
    message: str | None = None


class Table(NamedTuple):
    """A table to be shown; its cells are plain text."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


class Curve(NamedTuple):
    """A panel of curves.png: lines over the steps.

    Attributes:
        title: of the panel.
        kind: of the records that it is drawn from, "train" or "eval".
        values: of a record, by the name of the line.
        legend: what the names are.
        limits: of the values that are shown; where they are where None.
    """

    title: str
    kind: str
    values: Callable[[Record], Mapping[str, float]]
    legend: str
    limits: tuple[float, float] | None = None


class Task(Protocol):
    """A task, and how far a run of it has come.

    All that it decides follows from its config and its history, so that a resumed run is equal to the bit: what
    `to_dict` gives is saved with each checkpoint.

    Attributes:
        batch_size: B.
        curves: the panels of curves.png besides loss and learning rate.
    """

    batch_size: int
    curves: ClassVar[Sequence[Curve]]

    def batch(self, step: int) -> Batch:
        """Make the batch of a step."""
        ...

    def must_read(self, step: int) -> bool:
        """Say whether the next batch depends on this step's metrics; all steps before have been recorded."""
        ...

    def record(self, batch: Batch, metrics: Mapping[str, Any]) -> Record | None:
        """Take in the metrics of a step, in order; where a window ends, give what is written about it."""
        ...

    def evaluate(self, predict: Predict) -> Evaluation:
        """Measure the network; `predict` is the objective's, of any number of rows."""
        ...

    def end_epoch(self, evaluation: Evaluation | None) -> Verdict:
        """Take in the end of an epoch, with its evaluation where one was due."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Give all that the history has changed, as plain values that JSON holds without loss."""
        ...

    def load_dict(self, values: Mapping[str, Any]) -> None:
        """Take what `to_dict` gave."""
        ...

    def describe_training(self, record: Record) -> str:
        """Say in a few words what a train record holds besides loss and rate."""
        ...

    def describe_evaluation(self, record: Record) -> str:
        """Say in one line what an eval record holds."""
        ...

    def table(self, evaluations: Sequence[Record]) -> Table | None:
        """Give the latest of the eval records as a table; None where a line is enough."""
        ...
