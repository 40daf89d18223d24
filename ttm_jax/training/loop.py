"""The training loop of both twins: it draws batches, takes steps, evaluates, writes records and checkpoints.

What is learnt is the task's, what computes it the engine's; both are handed in. What happens comes out as events:
a display shows them, a test lists them, a benchmark takes its turn between them.
"""

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, NamedTuple

import numpy as np

from ttm_jax.training.checkpoint_files import BEST, LATEST, CheckpointError, find_checkpoint, read_meta, saved_steps
from ttm_jax.training.config import (
    ConfigError,
    RunConfig,
    changed_keys,
    config_from_dict,
    config_to_dict,
    flat_values,
    later_keys,
    read_values,
    show_value,
)
from ttm_jax.training.engine import Engine, State
from ttm_jax.training.plan import OutOfMemory, StepPlan
from ttm_jax.training.run_folder import RunFolder
from ttm_jax.training.task import Arrays, Batch, Example, Record, Task


class Started(NamedTuple):
    """The first event: a run begins, or goes on from a step."""

    step: int
    total_steps: int
    model: str


class Stepped(NamedTuple):
    """A step has been dispatched; examples a second are not known at first."""

    step: int
    rate: float | None


class Trained(NamedTuple):
    """A window of steps has ended, with its line of metrics.jsonl."""

    record: Record


class Evaluated(NamedTuple):
    """An evaluation, with its line of metrics.jsonl."""

    record: Record
    examples: list[Example]


class FellBack(NamedTuple):
    """Memory ran out, and the run goes on with another plan; its line of metrics.jsonl, and one for the user."""

    record: Record
    text: str


class Said(NamedTuple):
    """One line for the user."""

    text: str


class Ended(NamedTuple):
    """The last event; `how` is "finished", "early stop" or "interrupted"."""

    how: str
    step: int
    examples: int
    seconds: float


Event = Started | Stepped | Trained | Evaluated | FellBack | Said | Ended


class NonFiniteLoss(RuntimeError):
    """The loss became infinite or not a number; the message is one line for the user."""


@dataclass
class Progress:
    """What a run has to remember besides the engine's state and the task; saved with them.

    Attributes:
        step: optimiser steps done.
        seconds: of training so far, over all its parts.
        window: loss, gradient norm and learning rate of each step since the last train record.
        early_stop: whether the task has ended the run.
        plan: how steps are computed, since memory ran out.
    """

    plan: StepPlan
    step: int = 0
    seconds: float = 0.0
    window: list[list[float]] = field(default_factory=list)
    early_stop: bool = False

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], plans: list[StepPlan]) -> "Progress":
        """Take what was saved; a plan that this machine has not is replaced by its first."""
        own = {field.name: values[field.name] for field in fields(cls) if field.name != "plan"}
        saved = StepPlan(**values.get("plan", {}))
        return cls(saved if saved in plans else plans[0], **own)


def train(
    config: RunConfig,
    task: Task,
    engine: Engine[State],
    workdir: str | Path,
    resume: bool = False,
    stop: Callable[[], bool] = lambda: False,
    init: str | Path | None = None,
) -> Iterator[Event]:
    """Train until the end, a stop or an error.

    Args:
        config: of the run; it is written to the run folder.
        task: what is learnt.
        engine: what computes it.
        workdir: the run folder.
        resume: whether to go on from its latest checkpoint.
        stop: asked after each step; where it says True the run is saved and ends.
        init: the checkpoint that a new run has its parameters from, as `find_checkpoint` takes it; fresh ones where
            None. A run that is resumed has its own.

    Raises:
        ConfigError: at the first event, if the folder has a run and `resume` is off, if its config is another one, or
            if another run is writing there. Keys that nothing before depends on may differ (see `later_keys`).
        CheckpointError: if `resume` is on and there is no checkpoint that can be read, if `init` does not fit, or a
            checkpoint cannot be written.
        FileError: if another file of the run folder cannot be written.
        NonFiniteLoss: naming the step, its batch and the last good checkpoint.
        OutOfMemory: if memory runs out, and there is nothing left to fall back to.
    """
    folder = RunFolder(workdir, writes=engine.leads)
    if resume and not folder.path.exists():
        raise CheckpointError(f"checkpoint {folder.path}: no such file or folder")
    with folder.lock() as locked:
        run = _Run(config, task, engine, folder, resume, init)
        if not locked:
            run.notes.append(
                Said(f"{workdir}: this file system has no locks; take care that no other run writes there")
            )
        for event in run.events(stop):
            if isinstance(event, Trained | Evaluated | FellBack):
                folder.append(event.record)
            yield event


class _Run(Generic[State]):
    def __init__(
        self,
        config: RunConfig,
        task: Task,
        engine: Engine[State],
        folder: RunFolder,
        resume: bool,
        init: str | Path | None,
    ):
        self._config, self._task, self._engine = config, task, engine
        self.folder = folder
        self._fresh_task = copy.deepcopy(task.to_dict())
        self._init: str | None = None  # the checkpoint of the first parameters
        self._origin = engine.origin()
        self._eval_batch_size = config.train.eval_batch_size
        self._pending: tuple[Batch, Mapping[str, Any]] | None = None  # the last step, whose metrics have not been read
        self._state: State
        self.notes: list[Said] = []  # what is said with the next event
        # Where a run starts from: 1. with `resume`, the latest checkpoint of its folder; 2. the parameters of `init`,
        # which its folder remembers; 3. the seed.
        if resume:
            self._restore()
            self.folder.write_config(config)
        else:
            if self.folder.metrics_path.exists() or (self.folder.path / LATEST).exists():
                raise ConfigError(
                    f"{folder.path} has a run already; --resume goes on with it, --workdir names another folder"
                )
            self._init = None if init is None else str(find_checkpoint(init))
            self._begin(engine.plans[0])
            self.folder.create(config, self._provenance())
        self._latest, self._best = (engine.open_checkpoints(self.folder.path, kind) for kind in (LATEST, BEST))

    def events(self, stop: Callable[[], bool]) -> Iterator[Event]:
        total_steps = self._total_steps()
        self._started = time.perf_counter() - self.progress.seconds
        self._throughput = _Throughput(self._task.batch_size)
        plan = self.progress.plan
        yield Started(self.progress.step, total_steps, self._engine.describe(self._state, plan))
        if self._init is not None and not self.progress.step:
            yield Said(f"the parameters are those of {self._init}")
        yield from self._say()
        if plan != self._engine.plans[0]:
            yield Said(f"memory ran out before: going on with {self._engine.describe_plan(plan)}")
        # The order below decides what a resumed run sees; a checkpoint is taken at the end of a turn only.
        stopped = False
        while not stopped and not self.progress.early_stop and self.progress.step < total_steps:
            yield from self._or_fall_back(self._turn)
            stopped = stop()
        yield from self._or_fall_back(self._read)
        self.progress.seconds = time.perf_counter() - self._started
        self._save()
        self.folder.draw_curves(self._task.curves)
        how = "early stop" if self.progress.early_stop else "interrupted" if stopped else "finished"
        yield Ended(how, self.progress.step, self.progress.step * self._task.batch_size, self.progress.seconds)

    def _or_fall_back(self, act: Callable[[], Iterator[Event]]) -> Iterator[Event]:
        try:
            yield from act()
            return
        except Exception as error:
            if not self._engine.ran_out(error):
                raise
        yield self._fall_back()  # here, where the error no longer holds on to arrays

    def _turn(self) -> Iterator[Event]:
        """Take one step, and do what is due after it."""
        progress, task = self.progress, self._task
        # 1. draw and dispatch
        batch = task.batch(progress.step)
        self._state, metrics = self._engine.step(self._state, batch.arrays, progress.plan)
        # 2. read the step before, while the device computes this one
        yield from self._read()
        self._pending = (batch, metrics)
        progress.step += 1
        epoch, into_epoch = divmod(progress.step, self._config.train.steps_per_epoch)
        # 3. read this one too, where the next batch, or what is due at the end of an epoch, depends on it
        if task.must_read(progress.step - 1) or not into_epoch:
            yield from self._read()
        yield Stepped(progress.step, self._throughput.tick())
        progress.seconds = time.perf_counter() - self._started
        # 4. evaluate and save
        if not into_epoch:
            yield from self._end_epoch(epoch)

    def _read(self) -> Iterator[Event]:
        """Book the metrics of the last dispatched step; wait for it."""
        if self._pending is None:
            return
        batch, metrics = self._pending
        metrics = self._engine.read(metrics)
        self._pending = None
        values = [float(metrics[name]) for name in ("loss", "grad_norm", "learning_rate")]
        if not metrics.get("skipped", False):  # a step without effect, whose loss scale was too large
            if not math.isfinite(values[0]) or not math.isfinite(values[1]):
                self._fail(values)
            self.progress.window.append(values)
        found = self._task.record(batch, metrics)
        if found is None:
            return
        means = np.mean(self.progress.window or [values], axis=0).tolist()
        record = {
            "kind": "train",
            **self._where(),
            "loss": means[0],
            "grad_norm": means[1],
            "learning_rate": values[2],
            **found,
            "seconds": self.progress.seconds,
        }
        self.progress.window.clear()
        yield Trained(record)

    def _end_epoch(self, epoch: int) -> Iterator[Event]:
        is_due = epoch % self._config.train.eval_every_epochs == 0
        evaluation = self._task.evaluate(self._predict) if is_due else None
        yield from self._say()
        verdict = self._task.end_epoch(evaluation)
        self.progress.early_stop = verdict.stop
        if evaluation is not None:
            stop = {"stop": True} if verdict.stop else {}
            best = {"best": verdict.improved, **stop, "seconds": self.progress.seconds}
            record = {"kind": "eval", **self._where(), **evaluation.record, **best}
            yield Evaluated(record, list(evaluation.examples))
            if verdict.improved:
                self._best.save(self._state, self._meta())
        if verdict.message is not None:
            yield Said(verdict.message)
        if evaluation is not None or verdict.message is not None:
            self._save()

    def _say(self) -> Iterator[Said]:
        yield from self.notes
        self.notes.clear()

    def _predict(self, arrays: Arrays) -> Arrays:
        """Predict any number of rows, half as many at a time where memory runs out."""
        while True:
            try:
                return self._engine.predict(self._state, arrays, self._eval_batch_size)
            except Exception as error:
                if not self._engine.ran_out(error):
                    raise
                where = f"out of memory in the evaluation at step {self.progress.step}"
                if self._eval_batch_size == 1:
                    raise OutOfMemory(f"{where}, of one row at a time; {self._kept_checkpoint()}") from error
            self._eval_batch_size //= 2
            self.notes.append(Said(f"{where}: going on with {self._eval_batch_size} rows at a time"))

    def _begin(self, plan: StepPlan) -> None:
        self._task.load_dict(copy.deepcopy(self._fresh_task))
        init = None if self._init is None else find_checkpoint(self._init)
        if init is not None:
            read_meta(init, self._engine.format)
        self._state = self._made(lambda: self._engine.start(plan, init))
        self.progress = Progress(plan)

    def _made(self, make: Callable[[], State]) -> State:
        try:
            return make()
        except Exception as error:
            if not self._engine.ran_out(error):
                raise
            raise OutOfMemory(f"out of memory: the state alone does not fit; {self._kept_checkpoint()}") from error

    def _restore(self, plan: StepPlan | None = None) -> None:
        """Go to the latest checkpoint, or to the start where there is none yet; with its own plan where None."""
        config_path = self.folder.config_path
        if config_path.exists() and not saved_steps(self.folder.path, LATEST):
            self._compare(read_values(config_path))
            self._init = self.folder.init()
            self._begin(plan or self._engine.plans[0])  # it ended before its first checkpoint
        else:
            checkpoint = find_checkpoint(self.folder.path, (LATEST,))
            meta = read_meta(checkpoint, self._engine.format)
            changed = self._compare(meta["config"])
            saved, self._init = meta["progress"], meta["provenance"].get("init")
            self.progress = Progress.from_dict(saved, list(self._engine.plans))
            if self._total_steps() < self.progress.step:
                done = math.ceil(self.progress.step / self._config.train.steps_per_epoch)
                fewer = f"train.max_epochs must be at least {done}, got {self._config.train.max_epochs}"
                raise ConfigError(f"{fewer}: {self.folder.path} has done {done} epochs already")
            self.progress.early_stop &= not changed  # the next evaluation decides anew
            self.progress.plan = plan or self.progress.plan
            self._task.load_dict(saved["task"] if "task" in saved else saved["curriculum"])  # so until version 0.1
            self._state = self._made(lambda: self._engine.load(checkpoint, self.progress.plan))
        if damaged := self.folder.truncate(self.progress.step):
            text = f"{self.folder.metrics_path}: damaged lines dropped: {damaged}; training does not depend on them"
            self.notes.append(Said(text))

    def _fall_back(self) -> FellBack:
        """Go on from the latest checkpoint with steps that take less memory.

        Raises:
            OutOfMemory: if there are none.
        """
        where, plans = f"out of memory at step {self.progress.step}", list(self._engine.plans)
        tried = plans.index(self.progress.plan)
        if tried + 1 == len(plans):
            raise OutOfMemory(
                f"{where} with {self._engine.describe_plan(plans[tried])}: nothing is left to fall back to; "
                f"{self._kept_checkpoint()}"
            )
        self._pending, self.notes = None, []
        del self._state  # before another takes its room
        self._restore(plans[tried + 1])
        plan, seconds = self.progress.plan, time.perf_counter() - self._started
        record = {"kind": "fallback", **self._where(), **asdict(plan), "seconds": seconds}
        text = f"{where}: going on from step {self.progress.step} with {self._engine.describe_plan(plan)}"
        return FellBack(record, text)

    def _compare(self, saved: Mapping[str, Any]) -> bool:
        """Say whether the config is another than the saved one; refuse what the run so far depends on."""
        before = config_from_dict(type(self._config), saved)
        changed = changed_keys(before, self._config)
        if refused := [key for key in changed if key not in later_keys(self._config)]:
            old, new = flat_values(before), flat_values(self._config)
            values = ", ".join(f"{key} was {show_value(old[key])}, got {show_value(new[key])}" for key in refused)
            raise ConfigError(f"{self.folder.path} was trained with another config: {values}")
        return bool(changed)

    def _where(self) -> dict[str, int]:
        step = self.progress.step
        epoch = step // self._config.train.steps_per_epoch
        return {"step": step, "epoch": epoch, "examples": step * self._task.batch_size}

    def _meta(self) -> dict[str, Any]:
        return {
            "config": config_to_dict(self._config),
            "progress": {**asdict(self.progress), "task": self._task.to_dict()},
            "examples": self.progress.step * self._task.batch_size,
            "provenance": self._provenance(),
        }

    def _provenance(self) -> dict[str, Any]:
        return self._origin if self._init is None else {**self._origin, "init": self._init}

    def _total_steps(self) -> int:
        return self._config.train.max_epochs * self._config.train.steps_per_epoch

    def _save(self) -> None:
        self._latest.save(self._state, self._meta())

    def _fail(self, values: list[float]) -> None:
        step, seed = self.progress.step - 1, self._config.train.seed
        raise NonFiniteLoss(
            f"loss {values[0]} and gradient norm {values[1]} at step {step} "
            f"(batch: seed {seed}, step {step}); nothing was overwritten, {self._kept_checkpoint()}"
        )

    def _kept_checkpoint(self) -> str:
        try:
            return f"the last good checkpoint is {find_checkpoint(self.folder.path, (LATEST,))}"
        except CheckpointError:
            return "no checkpoint had been written yet"


class _Throughput:
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
