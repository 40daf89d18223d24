"""What is trained next: the stage of difficulty, and the mixture of operand lengths within it.

All of it follows from the training history and is saved with the model: a resumed run draws the same batches.
"""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ttm_jax.multiplication.config import CurriculumConfig

_RUNNING_WEIGHT = 0.5  # of the latest window in a length's running training accuracy


@dataclass
class Mixture:
    """Shares of the lengths of a stage, adapted to where the errors are (see `CurriculumConfig`).

    Attributes:
        shares: the share of each length; they sum to 1.
        running: training accuracy of each length over the latest windows.
        correct, total: examples of each length in the open window.
        steps: training steps in the open window.
    """

    shares: list[float]
    running: list[float]
    correct: list[int]
    total: list[int]
    steps: int = 0

    @classmethod
    def uniform(cls, num_lengths: int) -> "Mixture":
        zeros = [0] * num_lengths
        return cls([1 / num_lengths] * num_lengths, [0.0] * num_lengths, zeros, list(zeros))

    def record(self, config: CurriculumConfig, lengths_B: np.ndarray, exact_match_B: np.ndarray) -> list[float] | None:
        """Count a training batch; at the end of a window, renew the shares and return the window's accuracies."""
        count = len(self.shares)
        total = np.bincount(lengths_B, minlength=count)
        correct = np.bincount(lengths_B, weights=exact_match_B, minlength=count)
        self.total = (np.array(self.total) + total).tolist()
        self.correct = (np.array(self.correct) + correct).astype(int).tolist()
        self.steps += 1
        if self.steps < config.mixture_every:
            return None
        accuracy = np.divide(self.correct, self.total, out=np.array(self.running), where=np.array(self.total) > 0)
        running = _RUNNING_WEIGHT * accuracy + (1 - _RUNNING_WEIGHT) * np.array(self.running)
        before = np.concatenate([[1.0], running[:-1]])
        shares = (1 - running) * np.minimum(1, before + config.headroom) + config.floor
        fresh = Mixture.uniform(count)
        if config.adaptive:
            self.shares = (shares / shares.sum()).tolist()
        self.running = running.tolist()
        self.correct, self.total, self.steps = fresh.correct, fresh.total, 0
        return accuracy.tolist()


@dataclass
class Curriculum:
    """Progress through the stages.

    Attributes:
        stage: index of the current stage.
        stage_epochs: epochs spent in it.
        accuracy_history: held-out accuracy of each evaluation in it.
        best_accuracy: the best of them, and `best_epoch` its epoch within the stage.
        mixture: of the lengths of the stage.
    """

    stage: int
    mixture: Mixture
    stage_epochs: int = 0
    accuracy_history: list[float] = field(default_factory=list)
    best_accuracy: float = -1.0
    best_epoch: int = 0

    def record_evaluation(self, accuracy: float) -> bool:
        """Add an evaluation; return True where it is the best of the stage."""
        self.accuracy_history.append(accuracy)
        if accuracy <= self.best_accuracy:
            return False
        self.best_accuracy, self.best_epoch = accuracy, self.stage_epochs
        return True

    def should_advance(self, config: CurriculumConfig) -> bool:
        """Say whether the next stage is due: by the mean of the latest evaluations, or by the epochs spent here."""
        if self.stage >= config.last_stage:
            return False
        latest = self.accuracy_history[-config.window :]
        passed = len(latest) == config.window and float(np.mean(latest)) >= config.threshold
        return passed or self.stage_epochs >= config.max_epochs_per_stage

    def should_stop(self, config: CurriculumConfig, patience_epochs: int | None) -> bool:
        """Say whether the last stage has gone `patience_epochs` without a better evaluation."""
        if patience_epochs is None or self.stage < config.last_stage:
            return False
        return self.stage_epochs - self.best_epoch >= patience_epochs

    def advance(self, num_lengths: int) -> None:
        """Enter the next stage, whose mixture of `num_lengths` starts uniform."""
        self.stage += 1
        self.mixture = Mixture.uniform(num_lengths)
        self.stage_epochs, self.accuracy_history = 0, []
        self.best_accuracy, self.best_epoch = -1.0, 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON holds without loss."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Curriculum":
        return cls(mixture=Mixture(**values["mixture"]), **{k: v for k, v in values.items() if k != "mixture"})
