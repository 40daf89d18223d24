"""The training loop, the only impure module, and its command.

python -m ttm_jax.train                                  # two CPU cores, a few minutes
python -m ttm_jax.train --config multiplication          # the checklist's sizes
python -m ttm_jax.train --workdir runs/quick --resume    # go on
"""

import argparse
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ttm_jax.allocator import keep_freed_memory
from ttm_jax.checkpoint import (
    BEST,
    LATEST,
    CheckpointError,
    CheckpointFolder,
    find_checkpoint,
    load_meta,
    load_state,
    saved_steps,
)
from ttm_jax.cli import Parser, fail
from ttm_jax.config import (
    Config,
    ConfigError,
    changed_keys,
    config_keys,
    config_to_dict,
    describe,
    find_config,
    flag_of,
    load_config,
    override,
)
from ttm_jax.curriculum import Curriculum, Mixture
from ttm_jax.display import Display, make_display
from ttm_jax.evaluate import answer_pairs, score_answers
from ttm_jax.inference import Multiplier
from ttm_jax.multiplication import Batch, MultiplicationDataset
from ttm_jax.run_folder import RunFolder, provenance
from ttm_jax.state import TrainState, create_state, train_step
from ttm_jax.vocab import tokens_to_answer

DEFAULT_CONFIG = "quick"


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


class Trainer:
    """One run: state, data, folder. `run()` trains until the end, a stop or an error.

    `stop_requested` is asked after each step; where it says True the run saves and ends.

    Raises:
        ConfigError: if the folder has a run and `resume` is off, or its config is another one.
        CheckpointError: if `resume` is on and the folder has no checkpoint that can be read.
    """

    def __init__(
        self,
        config: Config,
        workdir: str | Path,
        resume: bool = False,
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        if "float64" in (config.model.dtype, config.model.param_dtype) and not jax.config.read("jax_enable_x64"):
            raise ConfigError("model.dtype and model.param_dtype float64 need JAX_ENABLE_X64=1 in the environment")
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
        self._latest = CheckpointFolder(self.folder.path, LATEST)
        self._best = CheckpointFolder(self.folder.path, BEST)
        self._pending: tuple[Batch, dict[str, jax.Array]] | None = None

    @property
    def total_steps(self) -> int:
        return self.config.train.max_epochs * self.config.train.steps_per_epoch

    def run(self, display: Display) -> str:
        """Trains and says how it ended: "finished", "early stop" or "interrupted".

        Raises:
            NonFiniteLoss: naming the step, its batch and the last good checkpoint.
        """
        started = time.perf_counter() - self.progress.seconds
        progress, per_epoch = self.progress, self.config.train.steps_per_epoch
        ended = "finished"
        clock = _Throughput(self.config.data.batch_size)
        # The order below decides what a resumed run sees; a checkpoint is taken at the end of a turn only.
        while progress.step < self.total_steps and not progress.early_stop:
            batch = self.dataset.batch(self.config.train.seed, progress.step, progress.curriculum.mixture.shares)
            dispatched = self._dispatch(batch)
            self._read_pending(display)  # of the step before, while the device computes this one
            self._pending = (batch, dispatched)
            progress.step += 1
            if progress.curriculum.mixture.steps + 1 == self.config.curriculum.mixture_every:
                self._read_pending(display)  # the end of a window, on which the next batch depends
            display.step(progress.step, clock.tick())
            progress.seconds = time.perf_counter() - started
            if progress.step % per_epoch == 0:
                self._end_epoch(display)
            if self._stop_requested():
                ended = "interrupted"
                break
        self._read_pending(display)
        progress.seconds = time.perf_counter() - started
        self._save()
        self.folder.draw_curves()
        self._latest.close()
        self._best.close()
        return "early stop" if progress.early_stop else ended

    def _dispatch(self, batch: Batch) -> dict[str, jax.Array]:
        num_steps = self.dataset.num_steps()
        arrays = {
            "inputs": batch.inputs,
            "targets": batch.targets[:, :num_steps],
            "carries": batch.carries[:, :num_steps],
        }
        self.state, metrics = train_step(self.state, arrays)
        return metrics

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

    def _end_epoch(self, display: Display) -> None:
        """Evaluates where it is due, and what follows from that: best checkpoint, early stop, next stage."""
        config, curriculum = self.config, self.progress.curriculum
        curriculum.stage_epochs += 1
        epoch = self.progress.step // config.train.steps_per_epoch
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
        multiplier = Multiplier(self.state.model, {"params": self.state.params}, config, self.folder.path)
        num_steps = self.dataset.num_steps()
        predictions, targets = answer_pairs(multiplier, np.concatenate(sets), num_steps, config.train.eval_batch_size)
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
        self._provenance = provenance()
        self.folder.create(self.config, self._provenance)
        self._begin()

    def _begin(self) -> None:
        self.state: TrainState = create_state(self.config)
        self.progress = Progress(
            Curriculum(self.config.curriculum.start_stage, Mixture.uniform(len(self.dataset.lengths())))
        )

    def _restore(self) -> None:
        self._provenance = provenance()
        if self.folder.config_path.exists() and not saved_steps(self.folder.path, LATEST):
            self._refuse_changes(load_config(self.folder.config_path))
            self._begin()  # it was killed before its first checkpoint
        else:
            checkpoint = find_checkpoint(self.folder.path, (LATEST,))
            saved, meta = load_meta(checkpoint)
            self._refuse_changes(saved)
            self.state = load_state(checkpoint, self.config)
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


class _StopSignal:
    """Turns Ctrl-C and SIGTERM into a request; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        signal.signal(signal.SIGINT, self._handle)
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, signum: int, frame: object) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        print("stopping: the step is finished and saved first (Ctrl-C again: at once)", file=sys.stderr)


def make_parser() -> Parser:
    """The command line; every key of the config is a dotted flag."""
    parser = Parser(
        prog="python -m ttm_jax.train",
        description="Trains a Token Turing Machine to multiply numbers.",
        epilog="example: python -m ttm_jax.train --config multiplication --workdir runs/big --model.memory-size 64",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help=f"a TOML file, or the name of a shipped config (default: {DEFAULT_CONFIG})")
    parser.add_argument("--workdir", help="the run folder (default: runs/NAME of the config)")
    parser.add_argument("--resume", action="store_true", help="go on from the latest checkpoint of the run folder")
    keys = parser.add_argument_group("config", "override a key of the config")
    for key, hint in config_keys().items():
        keys.add_argument(flag_of(key), dest=key, metavar="VALUE", default=argparse.SUPPRESS, help=describe(hint))
    return parser


def resolve(args: argparse.Namespace) -> tuple[Config, Path]:
    """The config and the run folder that the flags ask for.

    Raises:
        ConfigError: naming the file or flag.
    """
    overrides = {key: value for key, value in vars(args).items() if "." in key}
    name = DEFAULT_CONFIG if args.config is None else args.config
    workdir = Path(args.workdir or f"runs/{Path(name).stem}")
    if args.resume and args.config is None:
        saved = RunFolder(workdir).config_path
        if not saved.exists():
            raise ConfigError(f"--resume: {workdir} is no run folder: it has no config.toml")
        return override(load_config(saved), overrides), workdir
    return override(load_config(find_config(name)), overrides), workdir


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    keep_freed_memory()
    stop = _StopSignal()
    try:
        config, workdir = resolve(args)
        trainer = Trainer(config, workdir, args.resume, lambda: stop.requested)
    except (ConfigError, CheckpointError) as error:
        return fail(parser, error)
    except OSError as error:
        return fail(parser, f"{error.filename}: {error.strerror}")

    parameters = sum(leaf.size for leaf in jax.tree.leaves(trainer.state.params))
    with make_display(trainer.total_steps, trainer.progress.step) as display:
        display.message(f"{parameters:,} parameters on {jax.devices()[0].device_kind}; run folder {workdir}")
        try:
            ended = trainer.run(display)
        except NonFiniteLoss as error:
            return fail(parser, error, 1)
        except KeyboardInterrupt:
            return fail(parser, f"stopped at once; --resume goes on from the latest checkpoint of {workdir}", 130)

    progress = trainer.progress
    print(
        f"{ended}: {progress.step:,} steps, {progress.step * config.data.batch_size:,} examples, "
        f"{progress.seconds:.0f} s"
    )
    print(f"curves: {workdir / 'curves.png'}")
    if ended == "interrupted":
        print(f"go on:  {shlex.join(['python', '-m', 'ttm_jax.train', '--workdir', str(workdir), '--resume'])}")
    else:
        print(f"grid:   {shlex.join(['python', '-m', 'ttm_jax.evaluate', str(workdir)])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
