"""What counts as equal."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from parity.compare import Row, compared, identical, largest_difference

LARGE, SMALL = np.array([1.0, -200.0]), np.array([[2e-3, 1e-3]])


@pytest.mark.parametrize(("name", "error"), [("large", 3e-6), ("small", 3e-11)])
def test_each_array_has_its_own_scale(name, error):
    theirs = {"large": LARGE, "small": SMALL}
    ours = {**theirs, name: theirs[name].copy()}
    assert largest_difference(ours, theirs) == (0.0, "")
    ours[name].flat[0] += error
    value, at = largest_difference(ours, theirs)
    assert value == pytest.approx(1.5e-8, rel=1e-6)
    assert at == name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_array_that_is_only_rounding_is_measured_by_the_largest(dtype):
    eps = np.finfo(dtype).eps
    theirs = {"large": LARGE.astype(dtype), "zero": np.array([200 * 60 * eps], dtype)}
    assert largest_difference({**theirs, "zero": -theirs["zero"]}, theirs).value == pytest.approx(120 * eps)
    theirs["zero"] *= 1.1  # no rounding any more
    assert largest_difference({**theirs, "zero": -theirs["zero"]}, theirs).value == pytest.approx(2)


def test_where_all_is_zero_the_difference_is_absolute():
    theirs = {"a": np.zeros(3), "b": np.zeros(2)}
    assert largest_difference(theirs, theirs).value == 0
    assert largest_difference({**theirs, "a": np.array([0, -3e-9, 0])}, theirs) == (3e-9, "a")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_differs(value):
    for ours, theirs in ((value, 1.0), (1.0, value), (value, value)):
        assert largest_difference({"a": np.array([ours])}, {"a": np.array([theirs])}) == (math.inf, "a")


@pytest.mark.parametrize(
    ("ours", "at"),
    [
        ({"b": LARGE}, "a, which one side lacks"),
        ({"a": LARGE, "b": LARGE}, "b, which one side lacks"),
        ({"a": LARGE[None]}, "a: float64[1, 2] against float64[2]"),
        ({"a": LARGE.astype(np.float32)}, "a: float32[2] against float64[2]"),
        ({"a": LARGE.astype(int)}, "a: int64[2] against float64[2]"),
    ],
)
def test_names_shapes_and_dtypes_must_agree(ours, at):
    assert largest_difference(ours, {"a": LARGE}) == (math.inf, at)


def test_integers_must_be_equal():
    theirs = {"a": np.array([1, 2], np.int32), "b": np.array([True, False])}
    assert largest_difference({**theirs, "a": np.array([1, 2])}, theirs).value == 0
    assert largest_difference({**theirs, "a": np.array([1, 3])}, theirs) == (math.inf, "a")
    assert largest_difference({**theirs, "b": np.array([True, True])}, theirs) == (math.inf, "b")


def test_bfloat16_is_a_float():
    theirs = {"a": np.asarray(jnp.array([1.0, 2.0], jnp.bfloat16))}
    ours = {"a": np.asarray(jnp.array([1.0, 2.0 + 2**-6], jnp.bfloat16))}
    assert largest_difference(ours, theirs) == (2**-7, "a")


def test_identical_means_every_bit():
    theirs = {"a": np.array([0.0, np.nan])}
    assert identical(theirs, theirs).value == 0
    for other in (np.array([-0.0, np.nan]), np.array([[0.0, np.nan]]), np.array([0.0, np.nan], np.float32)):
        assert identical({"a": other}, theirs) == (math.inf, "a")
    assert identical({}, theirs) == (math.inf, "a, which one side lacks")


def test_a_row_tells_the_worst_kind():
    row = compared(
        "float64", 1e-10, outputs=({"x": LARGE}, {"x": LARGE}), input_gradients=({"y": -SMALL}, {"y": SMALL})
    )
    assert row == Row("float64: outputs, input gradients", 2.0, 1e-10, "input gradients y")
    assert not row.ok


@pytest.mark.parametrize(("difference", "in_bounds", "caught"), [(1.0, True, False), (1.1, False, True)])
def test_a_mutation_must_be_out_of_bounds(difference, in_bounds, caught):
    assert Row("", difference, 1.0).ok is in_bounds
    assert Row("", difference, 1.0, above=True).ok is caught
    assert not Row("", math.nan, 1.0).ok
    assert not Row("", math.nan, 1.0, above=True).ok
