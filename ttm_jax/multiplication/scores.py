"""Asking a multiplier for products and scoring its answers, whichever framework computes them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ttm_jax.multiplication.metrics import correct_positions
from ttm_jax.multiplication.problems import MAX_DIGITS, encode_answers, encode_problems
from ttm_jax.multiplication.vocab import EOS_TOKEN, TIMES_TOKEN, tokens_to_answer
from ttm_jax.training.task import Example


class AnyMultiplier(ABC):
    """A trained multiplier of either twin."""

    @abstractmethod
    def predict(
        self, inputs_BxS: np.ndarray, batch_size: int = 512, num_steps: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict tokens [B, T] and their probabilities [B, T], `batch_size` rows at a time.

        T is `num_steps`, a number of output places (all S where None).

        Raises:
            ValueError: under the schedule "product", if the operands of a problem have more than T - 1 digits together.
        """

    def multiply(self, a: Sequence[int], b: Sequence[int], batch_size: int = 512) -> list[int | None]:
        """Multiply a[i] by b[i] as the network does; None where it wrote no number.

        Raises:
            ValueError: if the sequences differ in length, or an operand is not an int in 0..99999.
        """
        first, second = np.atleast_1d(np.asarray(a)), np.atleast_1d(np.asarray(b))
        if first.shape != second.shape or first.ndim != 1:
            raise ValueError(f"operands must be two sequences of one length, got {first.shape} and {second.shape}")
        for numbers in (first, second):
            if not len(numbers):
                return []
            if numbers.dtype.kind not in "iu" or numbers.min() < 0 or numbers.max() >= 10**MAX_DIGITS:
                raise ValueError(f"operands must be integers in 0..{10**MAX_DIGITS - 1}")
        predictions, _ = self.predict(encode_problems(first, second), batch_size)
        return [tokens_to_answer(tokens) for tokens in predictions]


@dataclass(frozen=True)
class Score:
    """How a multiplier did on a set of pairs.

    Attributes:
        correct, total: pairs answered exactly, and all.
        end_correct: those that have EOS where the product ends; each product ends once.
        digit_correct, digit_total: the digits of the products at each place, units first.
    """

    correct: int
    total: int
    end_correct: int
    digit_correct: tuple[int, ...]
    digit_total: tuple[int, ...]

    @property
    def accuracy(self) -> float:
        return self.correct / max(self.total, 1)


def answer_pairs(
    multiplier: AnyMultiplier, pairs_Px2: np.ndarray, num_steps: int | None = None, batch_size: int = 512
) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true answer tokens [P, T] of pairs of operands; T is `num_steps`, in output places."""
    inputs = encode_problems(*pairs_Px2.T)
    predictions, _ = multiplier.predict(inputs, batch_size, num_steps)
    targets = encode_answers(pairs_Px2.prod(axis=1), inputs.shape[1])[:, : predictions.shape[1]]
    return predictions, targets


def score_answers(predictions_PxT: np.ndarray, targets_PxT: np.ndarray) -> Score:
    """Count the right answers and the right digits."""
    right = correct_positions(predictions_PxT, targets_PxT)
    digits = targets_PxT < TIMES_TOKEN
    return Score(
        int(right.all(axis=1).sum()),
        len(targets_PxT),
        int((right & (targets_PxT == EOS_TOKEN)).sum()),
        tuple((right & digits).sum(axis=0).tolist()),
        tuple(digits.sum(axis=0).tolist()),
    )


def add_scores(scores: list[Score]) -> Score:
    """Add several scores to that of all their pairs."""

    def at_each_place(counts: list[tuple[int, ...]]) -> tuple[int, ...]:
        return tuple(np.sum(counts, axis=0).tolist())

    return Score(
        sum(score.correct for score in scores),
        sum(score.total for score in scores),
        sum(score.end_correct for score in scores),
        at_each_place([score.digit_correct for score in scores]),
        at_each_place([score.digit_total for score in scores]),
    )


def pick_examples(
    sets: Sequence[np.ndarray], answers: Sequence[tuple[np.ndarray, np.ndarray]], first: int, count: int
) -> list[Example]:
    """Pick `count` of several sets of pairs with their answers, the last set's first, as (problem, answer, truth).

    `first` is how many have been shown before; they are passed over.
    """
    examples = []
    for i in range(count):
        pairs, (predictions, _) = sets[-1 - i % len(sets)], answers[-1 - i % len(sets)]
        row = (first + i) % len(pairs)
        (a, b), answer = pairs[row].tolist(), tokens_to_answer(predictions[row])
        examples.append(Example(f"{a} × {b} =", "no number" if answer is None else str(answer), str(a * b)))
    return examples
