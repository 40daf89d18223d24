"""Loading a run and multiplying with it."""

import dataclasses

import jax
import numpy as np
import pytest

import ttm_jax
from ttm_jax.multiplication.problems import encode_problems
from ttm_jax.training.checkpoint_files import LATEST, CheckpointError, find_checkpoint


@pytest.fixture(scope="module")
def multiplier(tiny_run):
    return ttm_jax.load(tiny_run.path)


def with_bias(multiplier, head, token, value):
    """The same network with another preference."""
    params = jax.tree.map(np.array, multiplier.variables["params"])
    params["head"][head]["bias"][token] += value
    return dataclasses.replace(multiplier, variables={"params": params})


def test_load_takes_a_run_folder_or_a_checkpoint(multiplier, tiny_run):
    assert multiplier.config == tiny_run.config
    assert multiplier.path == find_checkpoint(tiny_run.path)
    latest = find_checkpoint(tiny_run.path, (LATEST,))
    assert ttm_jax.load(str(latest)).path == latest


def test_load_refuses_what_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="no such file or folder"):
        ttm_jax.load(tmp_path / "missing")


def test_products_are_ints_or_none(multiplier):
    products = multiplier.multiply([12, 999], [3, 99])
    assert len(products) == 2
    assert all(product is None or type(product) is int for product in products)
    assert multiplier.multiply(np.array([12, 999]), np.array([3, 99])) == products
    assert multiplier.multiply((12, 999), (3, 99), batch_size=1) == products
    assert multiplier.multiply([], []) == []


def test_answers_come_out_of_the_network(multiplier):
    """Made to prefer a digit, it writes nothing else; made to prefer EOS, it writes no number."""
    assert with_bias(multiplier, "eos_head", 0, 100.0).multiply([2, 3], [3, 2]) == [None, None]
    assert with_bias(multiplier, "digit_head", 7, 100.0).multiply([2, 3], [3, 2]) == [None, None]  # no EOS
    tokens, probabilities = with_bias(multiplier, "digit_head", 7, 100.0).predict(encode_problems([2, 3], [3, 2]))
    assert (tokens == 7).all()
    assert (probabilities > 0.99).all()


def test_predictions_do_not_depend_on_the_batch_size(multiplier):
    generator = np.random.default_rng(0)
    inputs = encode_problems(generator.integers(0, 1000, 5), generator.integers(0, 100, 5))
    whole, probabilities = multiplier.predict(inputs)
    assert whole.shape == probabilities.shape == (5, 12)
    assert ((probabilities > 1 / 13) & (probabilities <= 1)).all()
    for batch_size in (1, 2, 3):
        tokens, others = multiplier.predict(inputs, batch_size)
        assert np.array_equal(tokens, whole)
        np.testing.assert_allclose(others, probabilities, rtol=1e-5)
    assert np.array_equal(multiplier.predict(inputs, num_steps=4)[0], whole[:, :4])


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([1, 2], [3], r"two sequences of one length, got \(2,\) and \(1,\)"),
        ([[1, 2]], [[3, 4]], "two sequences of one length"),
        ([-1], [3], r"integers in 0\.\.99999"),
        ([3], [-1], r"integers in 0\.\.99999"),
        ([100000], [3], r"integers in 0\.\.99999"),
        ([10**30], [3], r"integers in 0\.\.99999"),
        ([1.0], [3], r"integers in 0\.\.99999"),
        ([3], [2.5], r"integers in 0\.\.99999"),
        ([True], [3], r"integers in 0\.\.99999"),
        (["12"], [3], r"integers in 0\.\.99999"),
    ],
)
def test_other_operands_are_refused(multiplier, a, b, message):
    with pytest.raises(ValueError, match=message):
        multiplier.multiply(a, b)
