"""The training loop of both twins: data, mixture, stages, evaluation, records, when to save and when to stop.

What a state is, how it steps, answers, and goes to disk and back is the framework's: `ttm_jax.train.Trainer` and
`ttm_torch.train.Trainer` say it. Nothing else here differs between them, so both draw the same batches.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from ttm_jax.multiplication.curriculum import Curriculum, Mixture
from ttm_jax.multiplication.problems import Batch, MultiplicationDataset
from ttm_jax.multiplication.scores import pick_examples, score_answers
from ttm_jax.multiplication.steps import training_arrays
from ttm_jax.training.checkpoint_files import BEST, LATEST, CheckpointError, find_checkpoint, read_meta, saved_steps
from ttm_jax.training.config import Config, ConfigError, changed_keys, config_to_dict, load_config
from ttm_jax.training.display import Display, Throughput
from ttm_jax.training.plan import OutOfMemory, StepPlan
from ttm_jax.training.progress import Progress
from ttm_jax.training.run_folder import RunFolder

State = TypeVar("State")
_Saved = TypeVar("_Saved", contravariant=True)


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number; the message is one line for the user."""


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
        self._fitting: set[tuple[StepPlan, int]] = set()  # plans, and numbers of places, that fit the memory
        self._copy: Mapping[str, Any] | None = None  # of the state, while it is not known whether the next step fits
        self._eval_batch_size = config.train.eval_batch_size

    # What the framework says.

    @abstractmethod
    def _create_state(self, plan: StepPlan) -> State:
        """A fresh state on the device of the plan; it follows from the config alone."""

    @abstractmethod
    def _load_state(self, checkpoint: Path, plan: StepPlan) -> State:
        """The state of a checkpoint, on the device of the plan."""

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
    def _train_step(self, arrays: dict[str, np.ndarray], plan: StepPlan) -> Mapping[str, Any]:
        """Takes one step; "loss", "grad_norm", "learning_rate" and "exact_match" [B], which may still be computed."""

    @abstractmethod
    def _fetch(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """The metrics of a step as numbers and arrays; waits for it."""

    @abstractmethod
    def _answer(self, pairs_Px2: np.ndarray, num_steps: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true answer tokens [P, T] of pairs of operands, so many at a time."""

    @abstractmethod
    def _is_out_of_memory(self, error: Exception) -> bool:
        """Whether it says that memory ran out."""

    @abstractmethod
    def _next_plan(self, plan: StepPlan) -> StepPlan | None:
        """That takes less memory; None where there is none."""

    @abstractmethod
    def _copy_state(self) -> Mapping[str, Any] | None:
        """The state on the host, with its "step"; None where a step that failed has taken it along."""

    @abstractmethod
    def _put_state(self, copy: Mapping[str, Any], plan: StepPlan) -> State:
        """The state of a copy, on the device of the plan."""

    # The loop.

    @property
    def total_steps(self) -> int:
        return self.config.train.max_epochs * self.config.train.steps_per_epoch

    def run(self, display: Display) -> str:
        """Trains and says how it ended: "finished", "early stop" or "interrupted".

        Raises:
            NonFiniteLoss: naming the step, its batch and the last good checkpoint.
            OutOfMemory: if memory runs out, and there is nothing left to fall back to.
            CheckpointError: if it runs out, the state is lost, and its checkpoint cannot be read.
        """
        self._started = time.perf_counter() - self.progress.seconds
        self._throughput = Throughput(self.config.data.batch_size)
        if self.progress.plan != StepPlan():
            display.message(f"memory ran out before: going on with {self._describe_plan()}")
        # The order below decides what a resumed run sees; a checkpoint is taken at the end of a turn only.
        stopped = False
        while not stopped and not self.progress.early_stop and self.progress.step < self.total_steps:
            if self._advance(self._take_step, display) and not self.progress.step % self.config.train.steps_per_epoch:
                self._end_epoch(self.progress.step // self.config.train.steps_per_epoch, display)
            stopped = self._stop_requested()
        self._advance(self._read_pending, display)
        self.progress.seconds = time.perf_counter() - self._started
        self._save()
        self.folder.draw_curves()
        self._latest.close()
        self._best.close()
        if self.progress.early_stop:
            return "early stop"
        return "interrupted" if stopped else "finished"

    def _advance(self, act: Callable[[Display], None], display: Display) -> bool:
        """Acts, falling back where memory runs out; True where a step more has been taken."""
        before = self.progress.step
        try:
            act(display)
        except Exception as error:
            if not self._is_out_of_memory(error):
                raise
            self._fall_back(display)
        return self.progress.step > before

    def _take_step(self, display: Display) -> None:
        progress, config = self.progress, self.config
        batch = self.dataset.batch(config.train.seed, progress.step, progress.curriculum.mixture.shares)
        program = progress.plan, self.dataset.num_steps()
        is_new = program not in self._fitting
        if is_new:  # it may not fit, and where it fails the state may be lost
            self._read_pending(display)
            self._copy = self._copy_state()
        metrics = self._dispatch(batch)
        if is_new:
            metrics = self._fetch(metrics)
            self._fitting.add(program)
            self._copy = None
        self._read_pending(display)  # of the step before, while the device computes this one
        self._pending = (batch, metrics)
        progress.step += 1
        window_ends = progress.curriculum.mixture.steps + 1 == config.curriculum.mixture_every
        if window_ends or not progress.step % config.train.steps_per_epoch:
            self._read_pending(display)  # the next batch, or what is due at the end of an epoch, depends on it
        display.step(progress.step, self._throughput.tick())
        progress.seconds = time.perf_counter() - self._started

    def _dispatch(self, batch: Batch) -> Mapping[str, Any]:
        arrays = training_arrays(batch, self.config.model, self.dataset.num_steps())
        return self._train_step(arrays, self.progress.plan)

    def _read_pending(self, display: Display) -> None:
        """Books the metrics of the last dispatched step; waits for it."""
        if self._pending is None:
            return
        batch, metrics = self._pending
        metrics = self._fetch(metrics)
        self._pending = None
        values = [float(metrics[name]) for name in ("loss", "grad_norm", "learning_rate")]
        curriculum, window = self.progress.curriculum, self.progress.window
        if not math.isfinite(values[0]) or not math.isfinite(values[1]):
            self._fail(values)
        window.append(values)
        shares = curriculum.mixture.shares
        accuracy = curriculum.mixture.record(self.config.curriculum, batch.lengths, metrics["exact_match"])
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
        predictions, targets = self._answer_all(np.concatenate(sets), display)
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
        first = (len(self.progress.curriculum.accuracy_history) - 1) * config.train.num_examples
        display.evaluation(record, pick_examples(sets, answers, first, config.train.num_examples))
        return improved

    def _answer_all(self, pairs_Px2: np.ndarray, display: Display) -> tuple[np.ndarray, np.ndarray]:
        """Predicted and true answer tokens [P, T] of pairs, half as many at a time where memory runs out."""
        while True:
            try:
                return self._answer(pairs_Px2, self.dataset.num_steps(), self._eval_batch_size)
            except Exception as error:
                if not self._is_out_of_memory(error):
                    raise
                where = f"out of memory in the evaluation at step {self.progress.step}"
                if self._eval_batch_size == 1:
                    raise OutOfMemory(f"{where}, of one pair at a time; {self._kept_checkpoint()}") from error
            self._eval_batch_size //= 2
            display.message(f"{where}: going on with {self._eval_batch_size} pairs at a time")

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
        self._begin(StepPlan())

    def _begin(self, plan: StepPlan) -> None:
        self.state = self._create_state(plan)
        curriculum = Curriculum(self.config.curriculum.start_stage, Mixture.uniform(len(self.dataset.lengths())))
        self.progress = Progress(curriculum, plan=plan)

    def _restore(self, plan: StepPlan | None = None) -> None:
        """Goes to the latest checkpoint, or to the start where there is none yet; with its own plan where None."""
        self._provenance = self._describe_origin()
        if self.folder.config_path.exists() and not saved_steps(self.folder.path, LATEST):
            self._refuse_changes(load_config(self.folder.config_path))
            self._begin(plan or StepPlan())  # it ended before its first checkpoint
        else:
            checkpoint = find_checkpoint(self.folder.path, (LATEST,))
            saved, meta = read_meta(checkpoint, self.checkpoint_format)
            self._refuse_changes(saved)
            self.progress = Progress.from_dict(meta["progress"])
            self.progress.plan = plan or self.progress.plan
            self.state = self._load_state(checkpoint, self.progress.plan)
            self.dataset.current_stage = self.progress.curriculum.stage
        self.folder.truncate(self.progress.step)

    def _fall_back(self, display: Display) -> None:
        """Goes on with steps that take less memory: from the last one, or from a checkpoint where its state is lost.

        Raises:
            OutOfMemory: if there are none.
        """
        where = f"out of memory at step {self.progress.step}"
        plan = self._next_plan(self.progress.plan)
        if plan is None:
            raise OutOfMemory(
                f"{where} with {self._describe_plan()}: nothing is left to fall back to; {self._kept_checkpoint()}"
            )
        copy, self._copy = self._copy or self._rescue(display), None
        if copy is None:
            self._pending = None
            self._restore(plan)
            where += f", whose state is lost: going on from step {self.progress.step}"
        else:
            self.progress.plan = plan
            self.state = self._put_state(copy, plan)
            where += ": going on"
        self.folder.append(
            {"kind": "fallback", **self._where(), **plan.to_dict(), "seconds": time.perf_counter() - self._started}
        )
        display.message(f"{where} with {self._describe_plan()}")

    def _rescue(self, display: Display) -> Mapping[str, Any] | None:
        """A copy of the state that the last step left; None where it is lost."""
        try:
            self._read_pending(display)
            copy = self._copy_state()
        except Exception as error:
            if not self._is_out_of_memory(error):
                raise
            return None
        return copy if copy is not None and copy["step"] == self.progress.step else None

    def _describe_plan(self) -> str:
        """How steps are computed now, in words."""
        return self.progress.plan.describe(self.config.data.batch_size)

    def _refuse_changes(self, saved: Config) -> None:
        if changed := changed_keys(saved, self.config):
            raise ConfigError(f"{self.folder.path} was trained with another config; changed: {', '.join(changed)}")

    def _fail(self, values: list[float]) -> None:
        step = self.progress.step - 1
        raise NonFiniteLoss(
            f"loss {values[0]} and gradient norm {values[1]} at step {step} "
            f"(batch: seed {self.config.train.seed}, step {step}); nothing was overwritten, {self._kept_checkpoint()}"
        )

    def _kept_checkpoint(self) -> str:
        try:
            return f"the last good checkpoint is {find_checkpoint(self.folder.path, (LATEST,))}"
        except CheckpointError:
            return "no checkpoint had been written yet"
