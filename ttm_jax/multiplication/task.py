"""Multiplication as a task of the trainer: batches by curriculum, exact match on held-out pairs. NumPy only."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from ttm_jax.cli import clock
from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.curriculum import Curriculum, Mixture
from ttm_jax.multiplication.problems import MultiplicationDataset, encode_answers, encode_problems
from ttm_jax.multiplication.scores import pick_examples, score_answers
from ttm_jax.multiplication.steps import training_arrays
from ttm_jax.statistics import wilson_interval
from ttm_jax.training.task import Batch, Curve, Evaluation, Predict, Record, Table, Verdict

SHOWN = -2, 102  # per cent, in curves
# The checklist's marks for held-out exact match, by operand lengths.
MARKS = {"1x1": 0.95, "2x1": 0.90, "2x2": 0.85, "3x2": 0.80}


def _match_of(record: Record) -> dict[str, float]:
    return {name: counts["correct"] / counts["total"] for name, counts in record["exact_match"].items()}


def _percent(shares: Mapping[str, float]) -> dict[str, float]:
    return {name: 100 * share for name, share in shares.items()}


class MultiplicationTask:
    """See `ttm_jax.training.task.Task`.

    Attributes:
        dataset: the problems, at the current stage.
        curriculum: stage, mixture of operand lengths, accuracies.
    """

    curves: ClassVar[Sequence[Curve]] = (
        Curve("held-out exact match, %", "eval", lambda record: _percent(_match_of(record)), "digits", SHOWN),
        Curve("share of each operand length, %", "train", lambda record: _percent(record["mixture"]), "digits", SHOWN),
    )

    def __init__(self, config: Config):
        self._config = config
        self.batch_size = config.data.batch_size
        self.dataset = make_dataset(config, config.data.batch_size, config.curriculum.start_stage)
        self.curriculum = Curriculum(config.curriculum.start_stage, Mixture.uniform(len(self.dataset.lengths())))

    def batch(self, step: int) -> Batch:
        drawn = self.dataset.batch(self._config.train.seed, step, self.curriculum.mixture.shares)
        return Batch(training_arrays(drawn, self._config.model, self.dataset.num_steps()), drawn.lengths)

    def must_read(self, step: int) -> bool:
        """Return True at the end of a window, which renews the mixture."""
        return self.curriculum.mixture.steps + 1 == self._config.curriculum.mixture_every

    def record(self, batch: Batch, metrics: Mapping[str, Any]) -> Record | None:
        assert batch.labels is not None  # as `batch` gives them
        mixture = self.curriculum.mixture
        shares = mixture.shares
        accuracy = mixture.record(self._config.curriculum, batch.labels, metrics["exact_match"])
        if accuracy is None:
            return None
        names = [str(length) for length in self.dataset.lengths()]
        return {
            "stage": self.curriculum.stage,
            "train_accuracy": dict(zip(names, accuracy, strict=True)),
            "mixture": dict(zip(names, shares, strict=True)),
        }

    def evaluate(self, predict: Predict) -> Evaluation:
        """Measure exact match on held-out pairs of each length; the score is the mean over the lengths."""
        config, T = self._config.train, self.dataset.num_steps()
        sets = {str(length): self.dataset.held_out(length, config.eval_pairs) for length in self.dataset.lengths()}
        sets = {name: pairs for name, pairs in sets.items() if len(pairs)}
        # The pairs of all lengths are predicted together, and their answers split by length again.
        pairs = np.concatenate(list(sets.values()))
        targets = encode_answers(pairs.prod(axis=1), self.dataset.seq_len)[:, :T]
        predictions = predict(
            {"inputs": encode_problems(pairs[:, 0], pairs[:, 1], self.dataset.seq_len), "targets": targets}
        )
        ends = np.cumsum([len(pairs) for pairs in sets.values()])[:-1]
        answers = list(zip(np.split(predictions["predictions"], ends), np.split(targets, ends), strict=True))
        scores = {name: score_answers(*answer) for name, answer in zip(sets, answers, strict=True)}
        accuracy = float(np.mean([score.accuracy for score in scores.values()]))
        record = {
            "stage": self.curriculum.stage,
            "accuracy": accuracy,
            "exact_match": {name: {"correct": s.correct, "total": s.total} for name, s in scores.items()},
        }
        first = len(self.curriculum.accuracy_history) * config.num_examples
        return Evaluation(record, accuracy, pick_examples([*sets.values()], answers, first, config.num_examples))

    def end_epoch(self, evaluation: Evaluation | None) -> Verdict:
        config, curriculum = self._config, self.curriculum
        curriculum.stage_epochs += 1
        if evaluation is None:
            return Verdict()
        improved = curriculum.record_evaluation(evaluation.score)
        stop = curriculum.should_stop(config.curriculum, config.train.patience_epochs)
        if not curriculum.should_advance(config.curriculum):
            return Verdict(improved, stop)
        self.dataset.increase_difficulty()
        curriculum.advance(len(self.dataset.lengths()))
        low, high = self.dataset.stages[self.dataset.current_stage]
        return Verdict(improved, stop, f"stage {curriculum.stage}: operands from {low} to {high}")

    def to_dict(self) -> dict[str, Any]:
        return self.curriculum.to_dict()

    def load_dict(self, values: Mapping[str, Any]) -> None:
        self.curriculum = Curriculum.from_dict(dict(values))
        self.dataset.current_stage = self.curriculum.stage

    def describe_training(self, record: Record) -> str:
        accuracy = ", ".join(f"{name} {100 * share:.0f}" for name, share in record["train_accuracy"].items())
        return f"training exact match %: {accuracy}"

    def describe_evaluation(self, record: Record) -> str:
        cells = []
        for name, share in _match_of(record).items():
            met = " (mark met)" if name in MARKS and share > MARKS[name] else ""
            cells.append(f"{name} {100 * share:.1f} % of {record['exact_match'][name]['total']}{met}")
        return ", ".join(cells)

    def table(self, evaluations: Sequence[Record]) -> Table:
        """Give accuracies with intervals, and when each of the checklist's marks was first met."""
        latest, rows = evaluations[-1], []
        for name, counts in latest["exact_match"].items():
            low, high = wilson_interval(counts["correct"], counts["total"])
            rows.append(
                [
                    name,
                    f"{100 * counts['correct'] / counts['total']:.1f} %",
                    f"{100 * low:.1f} - {100 * high:.1f}",
                    f"{counts['correct']}/{counts['total']}",
                    _mark(name, evaluations),
                ]
            )
        return Table("held-out exact match", ["digits", "exact match", "95 % interval", "right/pairs", "mark"], rows)


def _mark(name: str, evaluations: Sequence[Record]) -> str:
    if name not in MARKS:
        return ""
    met = [record["seconds"] for record in evaluations if _match_of(record).get(name, 0.0) > MARKS[name]]
    return f"> {100 * MARKS[name]:.0f} %" + (f" ✓ at {clock(met[0])}" if met else "")


def make_task(config: Config) -> MultiplicationTask:
    """Make the task of a config."""
    return MultiplicationTask(config)


def make_dataset(config: Config, batch_size: int, stage: int) -> MultiplicationDataset:
    """Make the problems of a config at one of its stages."""
    data, seq_len = config.data, config.model.seq_len
    return MultiplicationDataset(
        batch_size, seq_len, config.train.seed, data.stages, stage, data.max_digits, data.augment
    )
