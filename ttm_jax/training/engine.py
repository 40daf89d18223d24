"""What the trainer asks of a framework: states, steps, predictions, checkpoints. Knows neither JAX nor PyTorch."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ttm_jax.training.plan import StepPlan
from ttm_jax.training.task import Arrays

State = TypeVar("State")


class Checkpoints(Protocol[State]):
    """The checkpoints of one kind in a run folder."""

    def save(self, state: State, meta: dict[str, Any]) -> Path:
        """Write the state and `meta`; complete or not at all."""
        ...


class Engine(Protocol[State]):
    """A framework with the objective that it trains.

    Attributes:
        format: what `meta/` of its checkpoints says that they are.
        plans: how a step may be computed, each taking less memory than the one before.
        leads: whether this process writes the run folder; of several, one does.
    """

    @property
    def format(self) -> str: ...
    @property
    def plans(self) -> Sequence[StepPlan]: ...
    @property
    def leads(self) -> bool: ...

    def start(self, plan: StepPlan, init: Path | None = None) -> State:
        """Make a fresh state where the plan computes; it follows from the seed alone.

        Where `init` is given, a checkpoint of this format, its parameters take the place of fresh ones.
        """
        ...

    def load(self, checkpoint: Path, plan: StepPlan) -> State:
        """Read the whole state of a checkpoint to where the plan computes."""
        ...

    def open_checkpoints(self, workdir: Path, kind: str) -> Checkpoints[State]:
        """Open those of a kind in a run folder."""
        ...

    def step(self, state: State, arrays: Arrays, plan: StepPlan) -> tuple[State, Mapping[str, Any]]:
        """Take one step.

        The state that is given is used up. The metrics may still be computed: "loss", "grad_norm", "learning_rate",
        those of the objective, and with a loss scale "skipped".
        """
        ...

    def read(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """Give the metrics of a step as numbers and arrays; wait for it."""
        ...

    def predict(self, state: State, arrays: Arrays, batch_size: int) -> Arrays:
        """Compute the objective's predictions of any number of rows, so many at a time."""
        ...

    def ran_out(self, error: Exception) -> bool:
        """Say whether an error means that memory ran out."""
        ...

    def describe(self, state: State, plan: StepPlan) -> str:
        """Say how large the model is and where it is: "327,561 parameters on cpu"."""
        ...

    def describe_plan(self, plan: StepPlan) -> str:
        """Say how steps are computed: "4 micro-batches of 16"."""
        ...

    def origin(self) -> dict[str, Any]:
        """Give versions and machine."""
        ...
