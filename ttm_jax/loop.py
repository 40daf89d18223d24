"""The training loop of both twins: data, mixture, stages, evaluation, records, when to save and when to stop.

What a state is, how it steps, answers, and goes to disk and back is the framework's: `ttm_jax.train.Trainer` and
`ttm_torch.train.Trainer` say it. Nothing else here differs between them, so both draw the same batches.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from ttm_jax.answers import score_answers
from ttm_jax.checkpoint_files import BEST, LATEST, CheckpointError, find_checkpoint, read_meta, saved_steps
from ttm_jax.config import Config, ConfigError, changed_keys, config_to_dict, load_config
from ttm_jax.curriculum import Curriculum, Mixture
from ttm_jax.display import Display, Throughput
from ttm_jax.multiplication import Batch, MultiplicationDataset
from ttm_jax.run_folder import RunFolder
from ttm_jax.vocab import tokens_to_answer

State = TypeVar("State")
_Saved = TypeVar("_Saved", contravariant=True)


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number; the message is one line for the user."""


@dataclass
class Progress:
    """What a run has to remember besides the device's state; saved with it.

    Attributes:
        curriculum: stage, mixture, accuracies.
        step: optimiser steps done.
        seconds: of training so far, over all its parts.
        window: loss, gradient norm and learning rate of each step since the last train record.
        early_stop: whether the last stage has stopped improving, which ends the run.
    """

    curriculum: Curriculum
    step: int = 0
    seconds: float = 0.0
    window: list[list[float]] = field(default_factory=list)
    early_stop: bool = False

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "curriculum": self.curriculum.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Progress":
        rest = {key: value for key, value in values.items() if key != "curriculum"}
        return cls(Curriculum.from_dict(values["curriculum"]), **rest)


class Checkpoints(Protocol[_Saved]):
    """The checkpoints of one kind in a run folder."""

    def save(self, state: _Saved, meta: dict[str, Any]) -> Path:
        """Writes the state and `meta`; complete or not at all."""

    def close(self) -> None:
        """Nothing more will be saved."""


class TrainingLoop(ABC, Generic[State]):
    """One run: state, data, folder. `run()` trains until the end, a stop or an error.

    `stop_requested` is asked after each step; where it says True the run saves and ends.

    Attributes:
        checkpoint_format: what `meta/` of its checkpoints says that they are.
        state: model and optimiser, whatever the framework makes of them.

    Raises:
        ConfigError: if the folder has a run and `resume` is off, or its config is another one.
        CheckpointError: if `resume` is on and the folder has no checkpoint that can be read.
    """

    checkpoint_format: ClassVar[str]
    state: State

    def __init__(
        self,
        config: Config,
        workdir: str | Path,
        resume: bool = False,
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        self.config = config
        self.folder = RunFolder(workdir)
        self._stop_requested = stop_requested
        self.dataset = MultiplicationDataset(
            config.data.batch_size,
            config.model.seq_len,
            config.train.seed,
            config.data.stages,
            config.curriculum.start_stage,
            config.data.max_digits,
            config.data.augment,
        )
        # Where a run starts from: 1. with --resume, the latest checkpoint of its folder; 2. the seed.
        if resume:
            self._restore()
        else:
            self._start()
        self._latest = self._open_checkpoints(LATEST)
        self._best = self._open_checkpoints(BEST)
        self._pending: tuple[Batch, Mapping[str, Any]] | None = None

    # What the framework says.

    @abstractmethod
    def _create_state(self) -> State:
        """A fresh state; it follows from the config alone."""

    @abstractmethod
    def _load_state(self, checkpoint: Path) -> State:
        """The state of a checkpoint."""

    @abstractmethod
    def _open_checkpoints(self, kind: str) -> Checkpoints[State]:
        """Those of a kind in the run folder."""

    @abstractmethod
    def _describe_origin(self) -> dict[str, Any]:
        """Versions and machine."""

    @abstractmethod
    def describe_model(self) -> str:
        """Size and place, as in "327,561 parameters on cpu"."""

    @abstractmethod
    def _train_step(self, arrays: dict[str, np.ndarray]) -> Mapping[str, Any]:
        """Takes one step; "loss", "grad_norm", "learning_rate" and "exact_match" [B], which may still be computed."""

    @abstractmethod
    def _answer(self, pairs_Px2: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true answer tokens [P, T] of pairs of operands."""

    # The loop.

    @property
    def total_steps(self) -> int:
        return self.config.train.max_epochs * self.config.train.steps_per_epoch

    def run(self, display: Display) -> str:
        """Trains and says how it ended: "finished", "early stop" or "interrupted".

        Raises:
            NonFiniteLoss: naming the step, its batch and the last good checkpoint.
        """
        progress, num_epochs = self.progress, self.config.train.max_epochs
        self._started = time.perf_counter() - progress.seconds
        self._throughput = Throughput(self.config.data.batch_size)
        stopped = False
        # The order below decides what a resumed run sees; a checkpoint is taken at the end of a turn only.
        for epoch in range(progress.step // self.config.train.steps_per_epoch, num_epochs):
            if stopped or progress.early_stop:
                break
            stopped = self._train_epoch(epoch, display)
        self._read_pending(display)
        progress.seconds = time.perf_counter() - self._started
        self._save()
        self.folder.draw_curves()
        self._latest.close()
        self._best.close()
        if progress.early_stop:
            return "early stop"
        return "interrupted" if stopped else "finished"

    def _train_epoch(self, epoch: int, display: Display) -> bool:
        """The steps that are left of an epoch, then what is due at its end; True where a stop was requested."""
        progress, end = self.progress, (epoch + 1) * self.config.train.steps_per_epoch
        while progress.step < end:
            batch = self.dataset.batch(self.config.train.seed, progress.step, progress.curriculum.mixture.shares)
            dispatched = self._dispatch(batch)
            self._read_pending(display)  # of the step before, while the device computes this one
            self._pending = (batch, dispatched)
            progress.step += 1
            if progress.curriculum.mixture.steps + 1 == self.config.curriculum.mixture_every:
                self._read_pending(display)  # the end of a window, on which the next batch depends
            display.step(progress.step, self._throughput.tick())
            progress.seconds = time.perf_counter() - self._started
            if progress.step == end:
                self._end_epoch(epoch + 1, display)
            if self._stop_requested():
                return True
        return False

    def _dispatch(self, batch: Batch) -> Mapping[str, Any]:
        num_steps = self.dataset.num_steps()
        return self._train_step(
            {
                "inputs": batch.inputs,
                "targets": batch.targets[:, :num_steps],
                "carries": batch.carries[:, :num_steps],
            }
        )

    def _read_pending(self, display: Display) -> None:
        """Books the metrics of the last dispatched step; waits for it."""
        if self._pending is None:
            return
        (batch, metrics), self._pending = self._pending, None
        values = [float(metrics[name]) for name in ("loss", "grad_norm", "learning_rate")]
        curriculum, window = self.progress.curriculum, self.progress.window
        if not math.isfinite(values[0]) or not math.isfinite(values[1]):
            self._fail(values)
        window.append(values)
        shares = curriculum.mixture.shares
        accuracy = curriculum.mixture.record(self.config.curriculum, batch.lengths, np.asarray(metrics["exact_match"]))
        if accuracy is None:
            return
        names = [str(length) for length in self.dataset.lengths()]
        loss, grad_norm, _ = np.mean(window, axis=0).tolist()
        record = {
            "kind": "train",
            **self._where(),
            "loss": loss,
            "grad_norm": grad_norm,
            "learning_rate": values[2],
            "train_accuracy": dict(zip(names, accuracy, strict=True)),
            "mixture": dict(zip(names, shares, strict=True)),
            "seconds": self.progress.seconds,
        }
        window.clear()
        self.folder.append(record)
        display.train(record)

    def _end_epoch(self, epoch: int, display: Display) -> None:
        """Evaluates where it is due, and what follows from that: best checkpoint, early stop, next stage."""
        config, curriculum = self.config, self.progress.curriculum
        curriculum.stage_epochs += 1
        if epoch % config.train.eval_every_epochs:
            return
        self._read_pending(display)
        improved = self._evaluate(display)
        if improved:
            self._best.save(self.state, self._meta())
        self.progress.early_stop = curriculum.should_stop(config.curriculum, config.train.patience_epochs)
        if curriculum.should_advance(config.curriculum):
            self.dataset.increase_difficulty()
            curriculum.advance(len(self.dataset.lengths()))
            low, high = self.dataset.stages[self.dataset.current_stage]
            display.message(f"stage {curriculum.stage}: operands from {low} to {high}")
        self._save()

    def _evaluate(self, display: Display) -> bool:
        """Measures held-out pairs of each length; True where the mean over the lengths is the stage's best."""
        config, lengths = self.config, self.dataset.lengths()
        sets = [self.dataset.held_out(length, config.train.eval_pairs) for length in lengths]
        lengths = [length for length, pairs in zip(lengths, sets, strict=True) if len(pairs)]
        sets = [pairs for pairs in sets if len(pairs)]
        predictions, targets = self._answer(np.concatenate(sets), self.dataset.num_steps())
        ends = np.cumsum([len(pairs) for pairs in sets])[:-1]
        answers = list(zip(np.split(predictions, ends), np.split(targets, ends), strict=True))
        scores = {str(length): score_answers(*answer) for length, answer in zip(lengths, answers, strict=True)}
        accuracy = float(np.mean([score.accuracy for score in scores.values()]))
        improved = self.progress.curriculum.record_evaluation(accuracy)
        record = {
            "kind": "eval",
            **self._where(),
            "accuracy": accuracy,
            "best": improved,
            "exact_match": {name: {"correct": s.correct, "total": s.total} for name, s in scores.items()},
            "seconds": self.progress.seconds,
        }
        self.folder.append(record)
        display.evaluation(record, self._examples(sets, answers))
        return improved

    def _examples(self, sets: list, answers: list) -> list[tuple[str, str, str]]:
        """Other examples at each evaluation, from the longest operands down, as (problem, answer, truth)."""
        examples = []
        evaluation = len(self.progress.curriculum.accuracy_history) - 1
        for i in range(self.config.train.num_examples):
            pairs, (predictions, _) = sets[-1 - i % len(sets)], answers[-1 - i % len(sets)]
            row = (evaluation * self.config.train.num_examples + i) % len(pairs)
            (a, b), answer = pairs[row].tolist(), tokens_to_answer(predictions[row])
            examples.append((f"{a} × {b}", "no number" if answer is None else str(answer), str(a * b)))
        return examples

    def _where(self) -> dict[str, int]:
        progress = self.progress
        return {
            "step": progress.step,
            "epoch": progress.step // self.config.train.steps_per_epoch,
            "stage": progress.curriculum.stage,
            "examples": progress.step * self.config.data.batch_size,
        }

    def _meta(self) -> dict[str, Any]:
        return {
            "config": config_to_dict(self.config),
            "progress": self.progress.to_dict(),
            "examples": self.progress.step * self.config.data.batch_size,
            "provenance": self._provenance,
        }

    def _save(self) -> Path:
        return self._latest.save(self.state, self._meta())

    def _start(self) -> None:
        if self.folder.metrics_path.exists() or (self.folder.path / LATEST).exists():
            raise ConfigError(
                f"{self.folder.path} has a run already; --resume goes on with it, --workdir names another folder"
            )
        self._provenance = self._describe_origin()
        self.folder.create(self.config, self._provenance)
        self._begin()

    def _begin(self) -> None:
        self.state = self._create_state()
        self.progress = Progress(
            Curriculum(self.config.curriculum.start_stage, Mixture.uniform(len(self.dataset.lengths())))
        )

    def _restore(self) -> None:
        self._provenance = self._describe_origin()
        if self.folder.config_path.exists() and not saved_steps(self.folder.path, LATEST):
            self._refuse_changes(load_config(self.folder.config_path))
            self._begin()  # it was killed before its first checkpoint
        else:
            checkpoint = find_checkpoint(self.folder.path, (LATEST,))
            saved, meta = read_meta(checkpoint, self.checkpoint_format)
            self._refuse_changes(saved)
            self.state = self._load_state(checkpoint)
            self.progress = Progress.from_dict(meta["progress"])
            self.dataset.current_stage = self.progress.curriculum.stage
        self.folder.truncate(self.progress.step)

    def _refuse_changes(self, saved: Config) -> None:
        if changed := changed_keys(saved, self.config):
            raise ConfigError(f"{self.folder.path} was trained with another config; changed: {', '.join(changed)}")

    def _fail(self, values: list[float]) -> None:
        step = self.progress.step - 1
        try:
            kept = f"the last good checkpoint is {find_checkpoint(self.folder.path, (LATEST,))}"
        except CheckpointError:
            kept = "no checkpoint had been written yet"
        raise NonFiniteLoss(
            f"loss {values[0]} and gradient norm {values[1]} at step {step} "
            f"(batch: seed {self.config.train.seed}, step {step}); nothing was overwritten, {kept}"
        )
