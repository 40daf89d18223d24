"""Accuracies by hand; the interval against known values."""

import jax.numpy as jnp
import numpy as np
import pytest

from ttm_jax.multiplication.metrics import (
    correct_positions,
    exact_match,
    position_accuracy,
    sequence_accuracy,
)
from ttm_jax.statistics import wilson_interval

TARGETS = [[6, 3, 11, 12, 12], [6, 3, 11, 12, 12], [6, 3, 11, 12, 12], [0, 11, 12, 12, 12], [1, 2, 3, 4, 5]]
PREDICTIONS = [
    [6, 3, 11, 11, 11],  # right: what follows EOS is not asked
    [6, 4, 11, 11, 11],  # one digit
    [6, 3, 5, 11, 11],  # no EOS where it belongs
    [0, 0, 11, 11, 11],
    [1, 2, 3, 4, 5],  # no EOS asked
]


@pytest.fixture(params=[np.array, jnp.array], ids=["numpy", "jax"])
def arrays(request):
    return request.param(PREDICTIONS), request.param(TARGETS)


def test_correct_positions(arrays):
    assert correct_positions(*arrays).tolist() == [
        [True, True, True, True, True],
        [True, False, True, True, True],
        [True, True, False, True, True],
        [True, False, True, True, True],
        [True, True, True, True, True],
    ]


def test_accuracies(arrays):
    assert exact_match(*arrays).tolist() == [True, False, False, False, True]
    assert float(sequence_accuracy(*arrays)) == pytest.approx(2 / 5)
    assert float(position_accuracy(*arrays)) == pytest.approx((3 + 2 + 2 + 1 + 5) / 16)


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [  # Newcombe 1998, table I, method 3, and Brown, Cai and DasGupta's formula for the rest
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (95, 100, 0.8882, 0.9785),
        (10, 10, 0.7225, 1.0),
    ],
)
def test_wilson_interval(correct, total, low, high):
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_the_interval_of_no_trial_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("total", [1, 7, 1000])
def test_the_interval_stays_in_range_and_holds_the_share(total):
    for correct in {0, 1, total // 2, total}:
        low, high = wilson_interval(correct, total)
        assert 0 <= low <= correct / total + 1e-12
        assert correct / total - 1e-12 <= high <= 1
