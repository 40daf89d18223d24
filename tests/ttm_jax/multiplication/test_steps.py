"""Which machine step works out what, checked against schoolbook multiplication."""

import itertools

import numpy as np
import pytest

from ttm_jax.multiplication.config import ModelConfig
from ttm_jax.multiplication.problems import MAX_DIGITS, MultiplicationDataset, encode_problems, schoolbook_carries
from ttm_jax.multiplication.steps import (
    ANSWERED_AT,
    NO_DIGIT,
    PRODUCT_STEPS,
    check_fit,
    num_machine_steps,
    running_sums,
    steps_of_places,
    training_arrays,
)
from ttm_jax.multiplication.vocab import DIGIT_TOKENS
from ttm_jax.tasks import config_from_dict
from ttm_jax.training.config import ConfigError

LENGTHS = list(itertools.product(range(1, MAX_DIGITS + 1), repeat=2))


@pytest.fixture(scope="module")
def numbers():
    """Operands of each pair of lengths, the largest among them."""
    generator = np.random.default_rng(0)
    pairs = [generator.integers(10 ** (n - 1) if n > 1 else 0, 10**n, 20) for n in range(1, MAX_DIGITS + 1)]
    a = np.concatenate([[10**n - 1, *pairs[n - 1]] for n, _ in LENGTHS])
    b = np.concatenate([[10**m - 1, *pairs[m - 1]] for _, m in LENGTHS])
    return a, b


def test_the_steps_of_two_by_two_digits():
    none = NO_DIGIT
    assert PRODUCT_STEPS[1, 1, :7].tolist() == [
        [0, 0, 0], [1, 0, 1], [1, 1, 0], [2, 1, 1], [3, none, none], [4, none, none], [5, none, none],
    ]  # fmt: skip
    assert ANSWERED_AT[1, 1, :6].tolist() == [0, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(("n", "m"), LENGTHS)
def test_each_product_has_its_step(n, m):
    steps = PRODUCT_STEPS[n - 1, m - 1]
    multiplied = [(i, j) for _, i, j in steps.tolist() if i != NO_DIGIT]
    assert sorted(multiplied) == list(itertools.product(range(n), range(m)))
    for place, i, j in steps.tolist():
        assert (i == NO_DIGIT) == (j == NO_DIGIT)
        assert i == NO_DIGIT or i + j == place
    assert np.array_equal(steps[ANSWERED_AT[n - 1, m - 1], 0], range(12))
    assert (np.diff(steps[:, 0]) >= 0).all()


@pytest.mark.parametrize(("n", "m"), LENGTHS)
def test_the_steps_of_a_place_end_with_its_answer(n, m):
    places = steps_of_places("product", n, m)
    for place, steps in enumerate(places):
        assert (PRODUCT_STEPS[n - 1, m - 1, steps, 0] == place).all()
        assert steps.stop - 1 == ANSWERED_AT[n - 1, m - 1, place]
    assert [steps.start for steps in places] == [0, *(steps.stop for steps in places[:-1])]
    assert steps_of_places("digit", n, m)[3] == slice(3, 4)


def test_numbers_of_steps():
    """Products, the leading place and EOS: 3 x 3 digits have 9 + 2."""
    assert [num_machine_steps("product", places) for places in (3, 5, 7, 9, 11)] == [3, 6, 11, 18, 27]
    assert [num_machine_steps("digit", places) for places in (3, 5, 12)] == [3, 5, 12]
    for n, m in LENGTHS:
        assert ANSWERED_AT[n - 1, m - 1, n + m] < num_machine_steps("product", n + m + 1)
    assert (num_machine_steps("product", 12) > ANSWERED_AT).all()
    assert num_machine_steps("product", 12) == PRODUCT_STEPS.shape[2]


def test_running_sums_by_hand():
    """47 x 86: 42 | 4 + 7·8 = 60, + 4·6 = 84 | 8 + 4·8 = 40 | 4."""
    assert running_sums(encode_problems([47], [86]), 5).tolist() == [[42, 60, 84, 40, 4, -1]]
    assert running_sums(encode_problems([3, 0], [2, 7]), 3).tolist() == [[6, -1, -1], [0, -1, -1]]


def test_running_sums_end_each_place_with_its_digit_and_carry(numbers):
    a, b = numbers
    sums, carries = running_sums(encode_problems(a, b), 12), schoolbook_carries(a, b)
    for row in range(len(a)):
        answered = ANSWERED_AT[len(str(a[row])) - 1, len(str(b[row])) - 1]
        digits = [int(digit) for digit in reversed(str(a[row] * b[row]))]
        for place, digit in enumerate(digits):
            assert sums[row, answered[place]] == 10 * carries[row, place] + digit
        assert (sums[row, answered[len(digits)] :] == -1).all()
        assert (sums[row, : answered[len(digits) - 1] + 1] >= 0).all()
    assert sums.max() == 449 - 9  # 99999 x 99999, before its last product: 44 are carried


def test_zeros_before_an_operand_have_steps_too():
    """0012 x 3 has four columns with a product: 6, 3, 0 and 0, of which the last two are past the answer."""
    inputs = encode_problems(np.array([12]), np.array([3]), leading_zeros=2)
    assert running_sums(inputs, 6).tolist() == [[6, 3, -1, -1, -1, -1, -1, -1]]


def test_an_answer_must_fit():
    inputs = encode_problems([12, 5], [34, 6])
    check_fit("product", inputs, 5)
    check_fit("product", inputs, None)
    check_fit("digit", inputs, 2)
    check_fit("product", inputs[:0], 1)
    with pytest.raises(ValueError, match=r"num_steps must be at least 5 for the longest of these problems, got 4"):
        check_fit("product", inputs, 4)


def test_what_is_trained_must_fit():
    batch = MultiplicationDataset(8, start_stage=2).batch(0, 0)
    with pytest.raises(ValueError, match="num_steps must be at least 5 for the longest of these problems, got 4"):
        training_arrays(batch, ModelConfig(schedule="product"), 4)


def test_zeros_are_not_written_before_operands():
    with pytest.raises(
        ConfigError, match=r'"leading_zeros" with model.schedule "product".* write data.augment = \["swap"\]'
    ):
        config_from_dict({"model": {"schedule": "product"}})  # both augmentations are the default
    config_from_dict({"model": {"schedule": "product"}, "data": {"augment": ["swap"]}})


def test_what_is_trained_on():
    batch = MultiplicationDataset(8, start_stage=2).batch(0, 0)
    digit = training_arrays(batch, ModelConfig(), 5)
    product = training_arrays(batch, ModelConfig(schedule="product"), 5)
    assert {name: array.shape for name, array in digit.items()} == {
        "inputs": (8, 12), "targets": (8, 5), "carries": (8, 5),
    }  # fmt: skip
    assert {name: array.shape for name, array in product.items()} == {
        "inputs": (8, 12), "targets": (8, 5), "sums": (8, 6),
    }  # fmt: skip
    assert np.array_equal(digit["carries"], batch.carries[:, :5])
    units = product["sums"][:, 0] % 10
    assert set(units.tolist()) <= set(DIGIT_TOKENS)
    assert np.array_equal(units, batch.targets[:, 0])
