"""What a multiplier did with one product: its digits, and what each step read, wrote and held.

A summary is a weighted mean of tokens (of projected ones under "query"), so its weights say what it is made of.
Followed from step to step, those of the writes say how much of each memory token was written at which step.

A step here is a place of the product. Under the schedule "product" it is as many machine steps, taken together: the
mean of what they read, and what their writes come to one after the other.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import accumulate
from typing import Any

import jax
import numpy as np

from ttm_jax.multiplication.config import ScheduleName
from ttm_jax.multiplication.demo.problem import was_trained
from ttm_jax.multiplication.inside import look_inside
from ttm_jax.multiplication.multiplier import Multiplier
from ttm_jax.multiplication.problems import encode_answers, encode_problems, place_name, schoolbook_carries
from ttm_jax.multiplication.steps import steps_of_places
from ttm_jax.multiplication.vocab import DIGIT_TOKENS, EOS_TOKEN, tokens_to_answer
from ttm_jax.training.settings import lenient


@dataclass(frozen=True)
class Trace:
    """One product, followed through the network; T steps, those up to the network's first EOS.

    Attributes:
        a, b: the operands.
        schedule: that of the network; under "product" a step here is a machine step for each product of its column.
        seconds: from the question to the answer, without compilation and without what looks inside.
        trained: as `was_trained` says.
        tokens_T, probabilities_T: what the network wrote, least significant digit first, and how sure it was.
        targets_T: what would have been right.
        wiped_T, wiped_probabilities_T: what the network writes where its memory is wiped before every machine step.
        carry_probabilities_TxC: of the carry out of each place, by the carry head; None where there is none.
        carries_T: the true carries.
        sums: of each step, the sums that the network's heads held after each product of its column. None where it
            works out no sums.
        read_TxM, read_TxS: where the read looked: the mean weights of its R tokens, of all machine steps of a place, on
            memory and on input tokens.
        kept_TxM: of each memory token that a step wrote, the share that comes from memory; the rest is new, from
            that step's output and input. None under "erase_add", whose memory is no mean of tokens.
        origin_TxW: of what a step read, the share that was in memory from the start (w = 0) or was written at step w
            (from 1; W = T + 1). Its own step too, where that is several machine steps. None where `kept_TxM` is.
    """

    a: int
    b: int
    schedule: ScheduleName
    seconds: float
    trained: str
    tokens_T: np.ndarray
    probabilities_T: np.ndarray
    targets_T: np.ndarray
    wiped_T: np.ndarray
    wiped_probabilities_T: np.ndarray
    carry_probabilities_TxC: np.ndarray | None
    carries_T: np.ndarray
    sums: tuple[tuple[int, ...], ...] | None
    read_TxM: np.ndarray
    read_TxS: np.ndarray
    kept_TxM: np.ndarray | None
    origin_TxW: np.ndarray | None

    @property
    def steps(self) -> range:
        return range(len(self.tokens_T))

    @property
    def answer(self) -> int | None:
        """Return the number that the network wrote, None where it wrote none."""
        return tokens_to_answer(self.tokens_T.tolist())

    @property
    def product(self) -> int:
        return self.a * self.b

    @property
    def correct(self) -> bool:
        return self.answer == self.product

    @cached_property
    def operand_tokens(self) -> list[str]:
        """List the input tokens that say something: the digits of `a`, the sign, the digits of `b`."""
        return [*str(self.a), "×", *str(self.b)]

    @property
    def read_operands_TxN(self) -> np.ndarray:
        """Return where the read looked among `operand_tokens`."""
        return self.read_TxS[:, : len(self.operand_tokens)]

    @property
    def read_written_TxW(self) -> np.ndarray | None:
        """Return `origin_TxW` without its last column where that is 0, as where a step is one machine step."""
        if self.origin_TxW is None or self.origin_TxW[:, -1].any():
            return self.origin_TxW
        return self.origin_TxW[:, :-1]

    @property
    def read_filler_T(self) -> np.ndarray:
        """Return how much the read looked at what follows the operands: EOS and padding."""
        return self.read_TxS[:, len(self.operand_tokens) :].sum(axis=1)

    def terms(self, step: int) -> list[tuple[int, int]]:
        """List the products of digits in a column of schoolbook multiplication, the digits of `a` first."""
        digits_a, digits_b = ([int(digit) for digit in reversed(str(number))] for number in (self.a, self.b))
        return [(digits_a[i], digits_b[step - i]) for i in range(len(digits_a)) if 0 <= step - i < len(digits_b)]

    def column(self, step: int) -> list[int]:
        """Say which of `operand_tokens` those products are made of."""
        sign, end = len(str(self.a)), len(self.operand_tokens)
        pairs = [(i, step - i) for i in range(sign) if 0 <= step - i < end - sign - 1]
        return sorted([sign - 1 - i for i, _ in pairs] + [end - 1 - j for _, j in pairs])

    def carry_in(self, step: int) -> int:
        return int(self.carries_T[step - 1]) if step else 0

    def column_sum(self, step: int) -> int:
        return self.running_sums(step)[-1]

    def running_sums(self, step: int) -> list[int]:
        """Return the carry into a column, and its sum after each of its products."""
        return list(accumulate((x * y for x, y in self.terms(step)), initial=self.carry_in(step)))

    def is_in_product(self, step: int) -> bool:
        """Say whether the product has a digit at this place."""
        return step < len(str(self.product))

    def held_carry(self, step: int) -> tuple[int, float] | None:
        """Return the carry that the network held for the next step, and its probability.

        None without a carry head, and past the product, where there is nothing to carry.
        """
        if self.carry_probabilities_TxC is None or not self.is_in_product(step):
            return None
        probabilities_C = self.carry_probabilities_TxC[step]
        return int(probabilities_C.argmax()), float(probabilities_C.max())

    def held_sums(self, step: int) -> list[tuple[int, bool]]:
        """Return the sums that the network held after each product of a column, and whether each is right."""
        if self.sums is None:
            return []
        products = self.sums[step][: len(self.terms(step))]  # a column without any has a step too
        return [(held, held == true) for held, true in zip(products, self.running_sums(step)[1:], strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as plain values; a "digit" is "end" where the network ended the number."""
        return {
            "problem": f"{self.a} × {self.b}",
            "answer": self.answer,
            "product": self.product,
            "correct": self.correct,
            "schedule": self.schedule,
            "trained": self.trained,
            "seconds": self.seconds,
            "operands": self.operand_tokens,
            "steps": [self._step(step) for step in self.steps],
        }

    def _step(self, step: int) -> dict[str, Any]:
        carry = self.held_carry(step)
        return {
            "place": place_name(step),
            "digit": symbol(self.tokens_T[step]),
            "probability": _round(self.probabilities_T[step]),
            "true_digit": symbol(self.targets_T[step]),
            "terms": self.terms(step),
            "column": self.column(step),
            "carry_in": self.carry_in(step),
            "sum": self.column_sum(step),
            "carry": int(self.carries_T[step]),
            "network_carry": None if carry is None else {"value": carry[0], "probability": _round(carry[1])},
            "network_sums": None if self.sums is None else [held for held, _ in self.held_sums(step)],
            "sums": self.running_sums(step)[1:],
            "wiped": {"digit": symbol(self.wiped_T[step]), "probability": _round(self.wiped_probabilities_T[step])},
            "read_operands": _round(self.read_operands_TxN[step]),
            "read_filler": _round(self.read_filler_T[step]),
            "read_memory": _round(self.read_TxM[step]),
            "kept": None if self.kept_TxM is None else _round(self.kept_TxM[step]),
            "origin": None if self.origin_TxW is None else _round(self.origin_TxW[step]),
        }


@lenient()
def trace(multiplier: Multiplier, a: int, b: int) -> Trace:
    """Multiply two numbers and look at every step."""
    inputs_1xS = encode_problems(np.array([a]), np.array([b]))
    start = time.perf_counter()
    tokens_1xS, probabilities_1xS = multiplier.predict(inputs_1xS)
    seconds = time.perf_counter() - start

    # The places up to the first EOS, each with its machine steps.
    ended = tokens_1xS[0] == EOS_TOKEN
    T = int(ended.argmax()) + 1 if ended.any() else len(ended)
    inside = jax.device_get(look_inside(multiplier.model, multiplier.variables, inputs_1xS))
    inside = jax.tree.map(lambda values: values[0], inside)
    M = multiplier.config.model.memory_size
    places = steps_of_places(multiplier.config.model.schedule, len(str(a)), len(str(b)))[:T]
    read_UxX = inside.read.mean(axis=1)  # of all U machine steps
    read_TxX = np.stack([read_UxX[steps].mean(axis=0) for steps in places])
    # How much each memory token kept, and at which place what was read had been written.
    kept = origin = None
    if inside.write is not None:
        kept_UxMxM = inside.write[:, :, :M]
        kept = np.stack([_in_turn(kept_UxMxM[steps]).sum(axis=1) for steps in places])
        origin = _by_place(_origins(read_UxX[:, :M], kept_UxMxM), places)
    return Trace(
        a,
        b,
        multiplier.config.model.schedule,
        seconds,
        was_trained(multiplier.config, a, b),
        tokens_1xS[0, :T],
        probabilities_1xS[0, :T],
        encode_answers(np.array([a * b]))[0, :T],
        inside.wiped[:T].argmax(axis=-1),
        inside.wiped[:T].max(axis=-1),
        None if inside.carries is None else inside.carries[:T],
        schoolbook_carries(np.array([a]), np.array([b]))[0, :T],
        None if inside.sums is None else tuple(tuple(inside.sums[steps].tolist()) for steps in places),
        read_TxX[:, :M],
        read_TxX[:, M:],
        kept,
        origin,
    )


def symbol(token: int) -> str:
    """Write a token: a digit as such, the sign as "×", EOS and the padding after it as "end"."""
    return str(token) if token in DIGIT_TOKENS else "end" if token >= EOS_TOKEN else "×"


def _origins(read_UxM: np.ndarray, kept_UxMxM: np.ndarray) -> np.ndarray:
    """Split what was read from memory by the step that wrote it: [U, U + 1], column 0 for what was there at first."""
    U, M = read_UxM.shape
    origin_UxW = np.zeros((U, U + 1))
    made_MxW = np.zeros((M, U + 1))
    made_MxW[:, 0] = 1
    for step in range(U):
        origin_UxW[step] = read_UxM[step] @ made_MxW
        made_MxW = kept_UxMxM[step] @ made_MxW
        made_MxW[:, step + 1] = 1 - kept_UxMxM[step].sum(axis=1)
    return origin_UxW


def _in_turn(kept_UxMxM: np.ndarray) -> np.ndarray:
    """Chain several writes: the share of each old memory token in each new one, [M, M]."""
    return reduce(lambda made, kept: kept @ made, kept_UxMxM)


def _by_place(origin_UxW: np.ndarray, places: Sequence[slice]) -> np.ndarray:
    """Split what was read from memory at each place by the place at which it was written: [T, T + 1]."""
    rows = np.stack([origin_UxW[steps].mean(axis=0) for steps in places])
    written = [rows[:, 1:][:, steps].sum(axis=1) for steps in places]
    return np.stack([rows[:, 0], *written], axis=1)


def _round(values: Any) -> Any:
    """Round to four decimals, as plain floats."""
    return np.round(np.asarray(values, np.float64), 4).tolist()
