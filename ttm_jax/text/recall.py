"""Associative recall over segments: facts in the first, questions in the last, nothing to the point between.

    k3 v8 k1 v5 . . . .  |  . . . . . . . .  |  . . ? k1 v5 ? k3 v8

The distance is the number of segments. Where the windows of all layers do not reach so far (with two layers, more than
two segments), what is answered right was carried by memory. A curriculum raises segments and facts. In training a fact
of several is asked for again and again: the later answers can be copied from the first, which teaches the model to look
a value up by its key. They do not count as recall. NumPy only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ttm_jax.statistics import wilson_interval
from ttm_jax.text.config import Config, RecallConfig
from ttm_jax.training.task import Arrays, Batch, Curve, Evaluation, Predict, Record, Verdict

_BOOKS = ("level", "right", "asked", "steps", "best")  # of the task, which go into each checkpoint
UNTRAINED = 4  # times the segments of the last level, at which an evaluation looks as well


@dataclass(frozen=True)
class Vocabulary:
    """The tokens: keys, values, fillers, and the question mark."""

    config: RecallConfig

    @property
    def first_value(self) -> int:
        return self.config.num_keys

    @property
    def first_filler(self) -> int:
        return self.first_value + self.config.num_values

    @property
    def question(self) -> int:
        return self.first_filler + self.config.num_fillers

    @property
    def size(self) -> int:
        return self.question + 1


def make_sequences(
    config: RecallConfig,
    segment: int,
    rows: int,
    segments: int,
    facts: int,
    generator: np.random.Generator,
    again: bool = False,
) -> Arrays:
    """Draw sequences of segments of N = `segment` tokens.

    Args:
        config: of the facts and questions.
        segment: N.
        rows: B.
        segments: T.
        facts: of the first segment.
        generator: of the draws.
        again: ask `config.questions` times, where there are fewer facts but several; else once for each.

    Returns "tokens", "targets" int32 [B, T, N], "weights" float32 [B, T, N] (1 where a value is asked for), "counted"
    float32 [B, T, N] (1 where it is for the first time) and "start" bool [B, T].
    """
    vocabulary = Vocabulary(config)
    questions = config.questions if again and facts > 1 else min(facts, config.questions)
    length = segments * segment
    sequence = generator.integers(vocabulary.first_filler, vocabulary.question, size=(rows, length))
    keys = generator.permuted(np.tile(np.arange(config.num_keys), (rows, 1)), axis=1)[:, :facts]
    values = vocabulary.first_value + generator.integers(config.num_values, size=(rows, facts))
    sequence[:, 0 : 2 * facts : 2] = keys
    sequence[:, 1 : 2 * facts : 2] = values
    rounds = -(-questions // facts)
    asked = [generator.permuted(np.tile(np.arange(facts), (rows, 1)), axis=1) for _ in range(rounds)]
    asked = np.concatenate(asked, axis=1)[:, :questions]
    places = length - 3 * questions + 3 * np.arange(questions)
    sequence[:, places] = vocabulary.question
    sequence[:, places + 1] = np.take_along_axis(keys, asked, axis=1)
    sequence[:, places + 2] = np.take_along_axis(values, asked, axis=1)
    weights = np.zeros((rows, length), np.float32)
    weights[:, places + 1] = 1
    counted = np.zeros_like(weights)
    counted[:, places[:facts] + 1] = 1  # each round asks for all
    start = np.zeros((rows, segments), bool)
    start[:, 0] = True
    by_segment = (rows, segments, segment)
    return {
        "tokens": sequence.astype(np.int32).reshape(by_segment),
        "targets": np.roll(sequence, -1, axis=1).astype(np.int32).reshape(by_segment),
        "weights": weights.reshape(by_segment),
        "counted": counted.reshape(by_segment),
        "start": start,
    }


class RecallTask:
    """See `ttm_jax.training.task.Task`."""

    curves: ClassVar[Sequence[Curve]] = (
        Curve("recall, %", "eval", lambda record: _percent(record["recall"]), "segments", (-2, 102)),
        Curve("segments", "train", lambda record: {"segments": record["segments"]}, "of the level"),
        Curve("facts", "train", lambda record: {"facts": record["facts"]}, "of the level"),
    )

    def __init__(self, config: Config):
        self._config = config
        self.batch_size = config.data.batch_size
        self._level, self._right, self._asked, self._steps = 0, 0.0, 0.0, 0
        self._best = -1.0

    @classmethod
    def at_the_end(cls, config: Config) -> "RecallTask":
        """Make the task at its last level."""
        task = cls(config)
        task._level = len(config.recall.levels) - 1
        return task

    def batch(self, step: int) -> Batch:
        segments, facts = self._config.recall.levels[self._level]
        return Batch(self._draw(self.batch_size, segments, facts, 0, step, again=True))

    def _draw(self, rows: int, segments: int, facts: int, *key: int, again: bool = False) -> Arrays:
        generator = np.random.default_rng([self._config.train.seed, *key])
        return make_sequences(self._config.recall, self._config.model.segment, rows, segments, facts, generator, again)

    def must_read(self, step: int) -> bool:
        """Return True at the end of a window, which may raise the level."""
        return self._steps + 1 == self._config.recall.window

    def record(self, batch: Batch, metrics: Mapping[str, Any]) -> Record | None:
        config = self._config.recall
        self._right += float(np.sum(metrics["right"]))
        self._asked += float(np.sum(metrics["counted"]))
        self._steps += 1
        if self._steps < config.window:
            return None
        segments, facts = config.levels[self._level]
        share = self._right / self._asked
        if share >= config.threshold and self._level + 1 < len(config.levels):
            self._level += 1
        self._right, self._asked, self._steps = 0.0, 0.0, 0
        return {"segments": segments, "facts": facts, "recall": share}

    def evaluate(self, predict: Predict) -> Evaluation:
        """Ask at the level reached, with and without memory; at the last level at four times the segments as well."""
        levels = self._config.recall.levels
        segments, facts = levels[self._level]
        distances = [segments, UNTRAINED * segments] if self._level + 1 == len(levels) else [segments]
        rows = self._config.recall.eval_sequences
        drawn = {distance: self._draw(rows, distance, facts, 1, distance) for distance in distances}
        found = {str(distance): self._ask(predict, arrays) for distance, arrays in drawn.items()}
        arrays = drawn[segments]
        wiped = self._ask(predict, {**arrays, "start": np.ones_like(arrays["start"])})
        record = {"segments": segments, "facts": facts, "recall": found, "wiped": wiped}
        shares = [counts["correct"] / counts["total"] for counts in found.values()]
        return Evaluation(record, 2 * self._level + float(np.mean(shares)))

    def _ask(self, predict: Predict, arrays: Arrays) -> dict[str, int]:
        right = predict({name: array[:, :, None] for name, array in arrays.items()})["right"]
        return {"correct": int(right.sum()), "total": int(arrays["weights"].sum())}

    def end_epoch(self, evaluation: Evaluation | None) -> Verdict:
        if evaluation is None:
            return Verdict()
        improved, self._best = evaluation.score > self._best, max(evaluation.score, self._best)
        config = self._config.recall
        last = self._level + 1 == len(config.levels)
        recall = evaluation.score - 2 * self._level
        return Verdict(improved, stop=last and config.stop_at is not None and recall >= config.stop_at)

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, f"_{name}") for name in _BOOKS}

    def load_dict(self, values: Mapping[str, Any]) -> None:
        for name in _BOOKS:
            setattr(self, f"_{name}", values[name])

    def describe_training(self, record: Record) -> str:
        level = f"{_facts(record)}, {record['segments']} segments"
        return f"{level}: {100 * record['recall']:.0f} % recalled"

    def describe_evaluation(self, record: Record) -> str:
        cells = []
        for distance, counts in record["recall"].items():
            low, high = wilson_interval(counts["correct"], counts["total"])
            share = 100 * counts["correct"] / counts["total"]
            cells.append(f"{distance} segments {share:.1f} % ({100 * low:.1f} - {100 * high:.1f})")
        wiped = 100 * record["wiped"]["correct"] / record["wiped"]["total"]
        chance = 100 / self._config.recall.num_values
        return f"{_facts(record)} recalled over {', '.join(cells)}; memory wiped {wiped:.1f} %, chance {chance:.1f} %"

    def table(self, evaluations: Sequence[Record]) -> None:
        return None


def _facts(record: Record) -> str:
    return f"{record['facts']} fact{'s' if record['facts'] > 1 else ''}"


def _percent(found: Mapping[str, Mapping[str, int]]) -> dict[str, float]:
    return {name: 100 * counts["correct"] / counts["total"] for name, counts in found.items()}
