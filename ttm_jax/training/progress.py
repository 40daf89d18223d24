"""What a training run remembers besides model and optimiser, as its checkpoints keep it."""

from dataclasses import dataclass, field
from typing import Any

from ttm_jax.multiplication.curriculum import Curriculum
from ttm_jax.training.plan import StepPlan


@dataclass
class Progress:
    """What a run has to remember besides the device's state; saved with it.

    Attributes:
        curriculum: stage, mixture, accuracies.
        step: optimiser steps done.
        seconds: of training so far, over all its parts.
        window: loss, gradient norm and learning rate of each step since the last train record.
        early_stop: whether the last stage has stopped improving, which ends the run.
        plan: how steps are computed, since memory ran out.
    """

    curriculum: Curriculum
    step: int = 0
    seconds: float = 0.0
    window: list[list[float]] = field(default_factory=list)
    early_stop: bool = False
    plan: StepPlan = field(default_factory=StepPlan)

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "curriculum": self.curriculum.to_dict(), "plan": self.plan.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        rest = {key: value for key, value in values.items() if key not in ("curriculum", "plan")}
        return cls(Curriculum.from_dict(values["curriculum"]), plan=StepPlan(**values.get("plan", {})), **rest)
