"""The multiplication task: pairs of numbers by operand length, as batches of tokens. NumPy only.

A batch is a pure function of (seed, step, mixture): a run that is resumed, and both twins, see the same examples.
"""

from collections.abc import Sequence
from typing import NamedTuple, overload

import numpy as np

from ttm_jax.multiplication.vocab import EOS_TOKEN, PAD_TOKEN, TIMES_TOKEN

MAX_DIGITS = 5  # of an operand: what the 12 position embeddings hold
MAX_CARRY = 44  # of schoolbook multiplication with that many digits
SEQ_LEN = 12
STAGES = ((0, 9), (0, 19), (0, 99), (0, 199), (0, 999), (0, 9999), (0, 99999))
AUGMENTATIONS = ("swap", "leading_zeros")

_PLACES = ("units", "tens", "hundreds", "thousands")
_SUPERSCRIPT = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
_POWERS = 10 ** np.arange(2 * MAX_DIGITS + 1, dtype=np.int64)
_MAX_DRAWS = 300  # of a pair; a tenth of the pairs are held out, so more draws mean that there are no others
_EVALUATION_SEED = 0x7E57


class Length(NamedTuple):
    """Digits of the longer and of the shorter operand; prints as "3x2"."""

    long: int
    short: int

    def __str__(self) -> str:
        return f"{self.long}x{self.short}"


class Batch(NamedTuple):
    """Inputs [B, S] and targets [B, S] (tokens), carries [B, S] and the index [B] of each example's length; int32."""

    inputs: np.ndarray
    targets: np.ndarray
    carries: np.ndarray
    lengths: np.ndarray


@overload
def is_held_out(a: int, b: int) -> bool: ...
@overload
def is_held_out(a: np.ndarray, b: np.ndarray) -> np.ndarray: ...
def is_held_out(a: int | np.ndarray, b: int | np.ndarray) -> bool | np.ndarray:
    """Say which pairs training never samples: 10 % of them by a fixed hash of the unordered pair.

    Pairs of single digits are never held out. Takes ints or arrays (broadcast together); returns bool or an array.
    """
    a, b = np.asarray(a, np.uint64), np.asarray(b, np.uint64)
    low, high = np.minimum(a, b), np.maximum(a, b)
    held_out = (_mix(_mix(low) + high) % np.uint64(10) == 0) & (high > 9)
    return held_out if held_out.ndim else bool(held_out)


def _mix(x: np.ndarray) -> np.ndarray:
    """Mix the bits of uint64 numbers by SplitMix64's finaliser, with wrap-around."""
    with np.errstate(over="ignore"):
        x = x + np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def encode_problems(
    a: np.ndarray, b: np.ndarray, seq_len: int = SEQ_LEN, leading_zeros: np.ndarray | int = 0
) -> np.ndarray:
    """Write the input tokens [B, S] of `a` times `b`: digits most significant first, sign, digits, EOS, padding.

    Args:
        a: first operands [B].
        b: second operands [B].
        seq_len: S.
        leading_zeros: zeros to write before each first operand.

    Raises:
        ValueError: if an operand is negative or a problem is longer than `seq_len`.
    """
    a, b = np.atleast_1d(np.asarray(a, np.int64)), np.atleast_1d(np.asarray(b, np.int64))
    digits_a, digits_b = (count_digits(a) + leading_zeros)[:, None], count_digits(b)[:, None]
    if a.size and (longest := int((digits_a + digits_b).max()) + 2) > seq_len:
        raise ValueError(f"a problem of {longest} tokens does not fit a sequence of {seq_len}")
    position = np.arange(seq_len)[None]
    after_sign = position - digits_a - 1
    return np.select(
        [position < digits_a, after_sign == -1, after_sign < digits_b, after_sign == digits_b],
        [_digit(a, digits_a - 1 - position), TIMES_TOKEN, _digit(b, digits_b - 1 - after_sign), EOS_TOKEN],
        PAD_TOKEN,
    ).astype(np.int32)


def decode_problems(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read the operands (a [B], b [B]) of input tokens [B, S] as `encode_problems` writes them."""
    digits_a, digits_b = operand_lengths(inputs)
    sign, end = digits_a[:, None], (digits_a + 1 + digits_b)[:, None]
    position = np.arange(inputs.shape[1])[None]

    def operand(start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        place = np.clip(stop - 1 - position, 0, len(_POWERS) - 1)
        inside = (position >= start) & (position < stop)
        return np.where(inside, inputs * _POWERS[place], 0).sum(axis=1)

    return operand(np.zeros_like(sign), sign), operand(sign + 1, end)


def operand_lengths(inputs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count the digits of both operands ([B], [B]) of input tokens [B, S], zeros before the first included."""
    sign, end = (np.argmax(inputs == token, axis=1) for token in (TIMES_TOKEN, EOS_TOKEN))
    return sign, end - sign - 1


def encode_answers(products: np.ndarray, seq_len: int = SEQ_LEN) -> np.ndarray:
    """Write the target tokens [B, S] of products: digits least significant first, EOS, padding.

    Raises:
        ValueError: if an answer is longer than `seq_len`.
    """
    products = np.atleast_1d(np.asarray(products, np.int64))
    digits = count_digits(products)[:, None]
    if products.size and (longest := int(digits.max()) + 1) > seq_len:
        raise ValueError(f"an answer of {longest} tokens does not fit a sequence of {seq_len}")
    position = np.arange(seq_len)[None]
    tokens = np.where(position < digits, _digit(products, position), PAD_TOKEN)
    return np.where(position == digits, EOS_TOKEN, tokens).astype(np.int32)


def schoolbook_carries(a: np.ndarray, b: np.ndarray, seq_len: int = SEQ_LEN) -> np.ndarray:
    """Work out what is carried out of each place [B, S] (int32) when `a` times `b` is multiplied by columns.

    Column t holds the products of digits i of `a` and t - i of `b`, and the carry into it. Its sum is ten times the
    carry out of it plus digit t of the product. A carry is at most MAX_CARRY.
    """
    carries = np.zeros((len(a), seq_len), np.int32)
    digits_a, digits_b = digits_of(a).T, digits_of(b).T
    carry = np.zeros(len(a), np.int64)
    for t in range(min(seq_len, 2 * MAX_DIGITS)):
        terms = [digits_a[i] * digits_b[t - i] for i in range(MAX_DIGITS) if 0 <= t - i < MAX_DIGITS]
        carry = (carry + sum(terms)) // 10
        carries[:, t] = carry
    return carries


def digits_of(numbers: np.ndarray) -> np.ndarray:
    """Return the digits of operands [B], units first: [B, MAX_DIGITS]."""
    return _digit(numbers, np.arange(MAX_DIGITS))


def place_name(place: int) -> str:
    """Say what a digit counts: "units", "tens", ..., "10⁴", ..."""
    return _PLACES[place] if place < len(_PLACES) else place_power(place)


def place_power(place: int) -> str:
    """Say what a digit counts, as a power: "10⁰", "10¹", ..."""
    return f"10{str(place).translate(_SUPERSCRIPT)}"


def count_digits(numbers: np.ndarray | int) -> np.ndarray:
    """Count the decimal digits of each number; 1 for zero.

    Raises:
        ValueError: if a number is negative or has more than 11 digits.
    """
    numbers = np.asarray(numbers, np.int64)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= 10 * _POWERS[-1]):
        raise ValueError(f"numbers must be in 0..{10 * _POWERS[-1] - 1}")
    return np.maximum(np.searchsorted(_POWERS, numbers, side="right"), 1)


def _digit(numbers: np.ndarray, place: np.ndarray) -> np.ndarray:
    return numbers[:, None] // _POWERS[np.clip(place, 0, len(_POWERS) - 1)] % 10


def augment_batch(
    inputs: np.ndarray,
    targets: np.ndarray,
    uniform_Bx2: np.ndarray | None = None,
    kinds: Sequence[str] = AUGMENTATIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """Write the same problems otherwise: operands swapped ("swap"), zeros before the first ("leading_zeros").

    Each kind changes an example with probability 1/2; zeros, one to three, only where there is room. The
    product, and so the targets, stay. Ours: the paper has no augmentation for numbers.

    Args:
        inputs: tokens [B, S].
        targets: tokens [B, S].
        uniform_Bx2: numbers in [0, 1) that decide, one a kind; drawn anew where None.
        kinds: which of AUGMENTATIONS to apply.
    """
    if uniform_Bx2 is None:
        uniform_Bx2 = np.random.default_rng().random((len(inputs), 2))
    seq_len = inputs.shape[1]
    a, b, leading_zeros = augment_operands(*decode_problems(inputs), uniform_Bx2, kinds, seq_len)
    return encode_problems(a, b, seq_len, leading_zeros), targets


def augment_operands(
    a: np.ndarray, b: np.ndarray, uniform_Bx2: np.ndarray, kinds: Sequence[str], seq_len: int = SEQ_LEN
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Say how problems are written: both operands, and the zeros before the first; see `augment_batch`."""
    swap, zeros = uniform_Bx2.T
    if "swap" in kinds:
        a, b = np.where(swap < 0.5, b, a), np.where(swap < 0.5, a, b)
    leading = np.zeros(len(a), np.int64)
    if "leading_zeros" in kinds:
        digits_a, digits_b = count_digits(a), count_digits(b)
        room = np.minimum(MAX_DIGITS - digits_a, seq_len - 2 - digits_a - digits_b)
        leading = np.where(zeros < 0.5, np.minimum(1 + (6 * zeros).astype(np.int64), room), 0)
    return a, b, leading


class MultiplicationDataset:
    """Batches of multiplication problems, at one of several stages of difficulty.

    A stage is a range (min_val, max_val) of operands. A problem is drawn by first drawing the lengths of its
    operands from a mixture (uniform unless given), then each operand uniformly among the numbers of that
    length in the range; held-out pairs are drawn again.

    Attributes:
        batch_size: B.
        seq_len: S, 12: the longest problem (5 x 5 digits) fills it.
        stages: the ranges, seven by default.
        current_stage: index into `stages`.
        max_digits: caps on the lengths of the longer and of the shorter operand.
        augment: which of AUGMENTATIONS to apply.

    Raises:
        ValueError: at construction, for a value that cannot be.
    """

    def __init__(
        self,
        batch_size: int = 128,
        seq_len: int = SEQ_LEN,
        seed: int = 0,
        stages: Sequence[tuple[int, int]] = STAGES,
        start_stage: int = 0,
        max_digits: tuple[int, int] = (MAX_DIGITS, MAX_DIGITS),
        augment: Sequence[str] = (),
    ):
        largest = 10**MAX_DIGITS - 1
        for low, high in stages:
            if not 0 <= low <= high <= largest:
                raise ValueError(f"stages must satisfy 0 <= min <= max <= {largest}, got {(low, high)}")
        if not 0 <= start_stage < len(stages):
            raise ValueError(f"start_stage must be in 0..{len(stages) - 1}, got {start_stage}")
        if not MAX_DIGITS >= max_digits[0] >= max_digits[1] >= 1:
            raise ValueError(f"max_digits must satisfy 5 >= longer >= shorter >= 1, got {max_digits}")
        if unknown := set(augment) - set(AUGMENTATIONS):
            raise ValueError(f"augment must be among {AUGMENTATIONS}, got {sorted(unknown)}")
        if batch_size < 1 or seed < 0:
            raise ValueError(f"batch_size must be positive and seed not negative, got {batch_size} and {seed}")
        self.batch_size = batch_size
        self.seq_len = seq_len
        self.seed = seed
        self.stages = tuple((int(low), int(high)) for low, high in stages)
        self.current_stage = start_stage
        self.max_digits = tuple(max_digits)
        self.augment = tuple(augment)
        self._generated = 0
        for stage in range(len(stages)):
            if not self.lengths(stage):
                raise ValueError(f"stage {self.stages[stage]} has no operands within max_digits {max_digits}")
            if (longest := self.num_steps(stage) + 1) > seq_len:
                raise ValueError(f"seq_len must hold the {longest} tokens of a problem, got {seq_len}")
            _draw_pairs(np.random.Philox(key=0), *self._bounds(stage))  # raises where nothing is left to train

    def increase_difficulty(self) -> None:
        """Move to the next stage; stay at the last."""
        self.current_stage = min(self.current_stage + 1, len(self.stages) - 1)

    def lengths(self, stage: int | None = None) -> list[Length]:
        """List the operand lengths of a stage (the current one where None), shortest products first."""
        low, high = self.stages[self.current_stage if stage is None else stage]
        shortest, longest = (int(count_digits(number)) for number in (low, high))
        found = [
            Length(long, short)
            for long in range(shortest, min(longest, self.max_digits[0]) + 1)
            for short in range(shortest, min(long, self.max_digits[1]) + 1)
        ]
        return sorted(found, key=lambda length: (sum(length), length))

    def num_steps(self, stage: int | None = None) -> int:
        """Count the output places that the longest answer of a stage needs, EOS included."""
        return max(sum(length) for length in self.lengths(stage)) + 1

    def batch(self, seed: int, step: int, mixture: Sequence[float] | None = None) -> Batch:
        """Draw batch `step` of the sequence that `seed` stands for, at the current stage: a pure function.

        Args:
            seed: which sequence of batches.
            step: which of its batches.
            mixture: the share of each of `lengths()`; equal shares where None.
        """
        lengths = self.lengths()
        shares = np.full(len(lengths), 1 / len(lengths)) if mixture is None else np.asarray(mixture)
        bits = np.random.Philox(key=np.array([seed, step], np.uint64))
        # The first of three numbers for each example picks its length, the others decide on its augmentations.
        uniform = bits.random_raw((3, self.batch_size)) / 2.0**64
        index = np.searchsorted(np.cumsum(shares)[:-1], uniform[0] * shares.sum(), side="right")
        low, high = self._bounds(self.current_stage)[:, index]
        pairs = _draw_pairs(bits, low, high)
        written = augment_operands(pairs[:, 0], pairs[:, 1], uniform[1:].T, self.augment, self.seq_len)
        inputs = encode_problems(*written[:2], self.seq_len, leading_zeros=written[2])
        targets = encode_answers(pairs.prod(axis=1), self.seq_len)
        carries = schoolbook_carries(pairs[:, 0], pairs[:, 1], self.seq_len)  # the same whichever operand comes first
        return Batch(inputs, targets, carries, index.astype(np.int32))

    def generate_batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Draw the next batch of this object's own sequence: inputs [B, S] and targets [B, S]."""
        batch = self.batch(self.seed, self._generated)
        self._generated += 1
        return batch.inputs, batch.targets

    def held_out(self, length: Length, count: int) -> np.ndarray:
        """Return at most `count` held-out pairs [P, 2] of a length within the current stage; see `held_out_pairs`."""
        return held_out_pairs(length, count, self.stages[self.current_stage])

    def _bounds(self, stage: int) -> np.ndarray:
        """Return the smallest and largest operands [2, lengths, 2] of each length of a stage."""
        bounds = [[_range_of(digits, self.stages[stage]) for digits in length] for length in self.lengths(stage)]
        return np.array(bounds).transpose(2, 0, 1)


def held_out_pairs(length: Length | tuple[int, int], count: int, stage: tuple[int, int] = STAGES[-1]) -> np.ndarray:
    """Return at most `count` distinct pairs [P, 2] (int64) of operands of two lengths that training never samples.

    They are always the same ones, and all there are where there are no more. For (1, 1) nothing is held out, so they
    are all pairs, which training does sample.
    """
    (low_a, high_a), (low_b, high_b) = (_range_of(digits, stage) for digits in length)
    sizes = high_a - low_a + 1, high_b - low_b + 1
    bits = np.random.Philox(key=np.array([_EVALUATION_SEED, 10 * length[0] + length[1]], np.uint64))
    total = sizes[0] * sizes[1]
    # Where pairs are few, all of them are shuffled; else some are drawn, and what is drawn again left out.
    if total <= 40 * count or total <= 10**6:
        order = np.argsort(bits.random_raw(total), kind="stable")
    else:
        drawn = (bits.random_raw(40 * count) % np.uint64(total)).astype(np.int64)
        _, first = np.unique(drawn, return_index=True)
        order = drawn[np.sort(first)]
    pairs = np.stack([low_a + order // sizes[1], low_b + order % sizes[1]], axis=1)
    if max(high_a, high_b) > 9:
        pairs = pairs[is_held_out(*pairs.T)]
    return pairs[:count]


def _range_of(digits: int, stage: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest and the largest number with that many digits in the range of a stage."""
    return max(stage[0], 10 ** (digits - 1) if digits > 1 else 0), min(stage[1], 10**digits - 1)


def _draw_pairs(bits: np.random.Philox, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Draw pairs [B, 2] between `low` and `high` [B, 2]; draw anew those that are held out."""
    pairs = np.zeros_like(low)
    open_rows = np.arange(len(low))
    for _ in range(_MAX_DRAWS):
        spans = (high - low + 1)[open_rows].astype(np.uint64)
        drawn = low[open_rows] + (bits.random_raw(spans.shape) % spans).astype(np.int64)
        pairs[open_rows] = drawn
        open_rows = open_rows[is_held_out(*drawn.T)]
        if not len(open_rows):
            return pairs
    row = open_rows[0]
    raise ValueError(f"every pair of operands from {low[row]} to {high[row]} is held out: widen the stage")
