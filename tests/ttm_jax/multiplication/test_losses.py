"""The loss: by hand, against NumPy, and where it must have no gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from parity.fast_jit import fast_jit
from ttm_jax.multiplication.losses import (
    EOS_LOSS_SCALE,
    compute_ce_loss,
    compute_eos_bce,
    compute_masked_ce_loss,
    compute_normalized_ce_loss,
    compute_total_loss,
    create_eos_target,
    create_target_mask,
    find_eos_positions,
    sum_carry_loss,
    sum_column_loss,
)
from ttm_jax.multiplication.vocab import EOS_TOKEN, PAD_TOKEN, VOCAB_SIZE

pytestmark = pytest.mark.usefixtures("nans_are_errors")

TARGETS = np.array([[6, 3, 11, 12, 12], [0, 11, 12, 11, 12], [1, 2, 3, 4, 5]])
MASK = [[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 1, 1, 1, 1]]

total_loss_and_gradient = fast_jit(jax.value_and_grad(compute_total_loss))


@pytest.fixture(scope="module")
def logits(normal):
    return normal(0, 3, 5, VOCAB_SIZE)


def cross_entropy(logits):
    """Of each position, in float64."""
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_probs, TARGETS[..., None], -1)[..., 0]


def eos_cross_entropy(logits):
    logits = np.asarray(logits, np.float64)
    probs = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))[..., EOS_TOKEN]
    is_first_eos = (TARGETS == EOS_TOKEN) & (np.array(MASK) == 1)
    return -np.where(is_first_eos, np.log(probs), np.log(1 - probs))


def test_the_target_mask_ends_with_the_first_eos():
    assert create_target_mask(jnp.asarray(TARGETS)).tolist() == MASK


def test_the_target_mask_of_a_numpy_array_is_one():
    mask = create_target_mask(TARGETS)
    assert isinstance(mask, np.ndarray)
    assert mask.tolist() == MASK
    assert isinstance(jax.jit(create_target_mask)(TARGETS), jax.Array)


def test_eos_positions_and_targets():
    positions = find_eos_positions(jnp.asarray(TARGETS))
    assert positions.tolist() == [2, 1, 5]
    assert create_eos_target(positions, 5).tolist() == [[0, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]]


def test_cross_entropies(logits):
    expected, mask = cross_entropy(logits), np.array(MASK)
    targets = jnp.asarray(TARGETS)
    np.testing.assert_allclose(compute_ce_loss(logits, targets), expected.mean(), rtol=1e-6)
    masked = compute_masked_ce_loss(logits, targets, jnp.asarray(mask, jnp.float32))
    np.testing.assert_allclose(masked, (expected * mask).sum(), rtol=1e-6)
    normalized = compute_normalized_ce_loss(logits, targets)
    np.testing.assert_allclose(normalized, (expected * mask).sum() / 10, rtol=1e-6)
    assert normalized.shape == ()


def test_uniform_logits_cost_the_logarithm_of_the_vocabulary():
    loss = compute_normalized_ce_loss(jnp.zeros((3, 5, VOCAB_SIZE)), jnp.asarray(TARGETS))
    np.testing.assert_allclose(loss, np.log(13), rtol=1e-6)


def test_eos_bce_by_hand():
    probs, targets = jnp.array([[0.9, 0.2], [0.5, 0.25]]), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    each = -np.log([[0.9, 0.8], [0.5, 0.75]])
    np.testing.assert_allclose(compute_eos_bce(probs, targets), each.mean(), rtol=1e-6)
    mask = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(compute_eos_bce(probs, targets, mask), (each * mask).sum() / 3, rtol=1e-6)


@pytest.mark.parametrize("target", [0.0, 1.0])
@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_eos_bce_of_saturated_probabilities_is_finite(probability, target):
    probs, targets = jnp.full((1, 2), probability), jnp.full((1, 2), target)
    loss, gradient = jax.value_and_grad(compute_eos_bce)(probs, targets)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()
    assert (loss > 10) == (probability != target)


@pytest.mark.parametrize("scale", [1.0, 1e3, 1e5])
def test_the_total_loss_of_extreme_logits_is_finite(logits, scale):
    loss, gradient = total_loss_and_gradient(scale * logits, jnp.asarray(TARGETS))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_the_total_is_cross_entropy_and_a_tenth_of_eos(logits):
    mask = np.array(MASK)
    expected = ((cross_entropy(logits) + 0.1 * eos_cross_entropy(logits)) * mask).sum() / mask.sum()
    np.testing.assert_allclose(compute_total_loss(logits, jnp.asarray(TARGETS)), expected, rtol=1e-5)
    assert EOS_LOSS_SCALE == 0.1


def test_what_follows_eos_does_not_matter(logits):
    targets = jnp.asarray(TARGETS)
    loss, gradient = total_loss_and_gradient(logits, targets)
    ignored = np.array(MASK) == 0
    assert (np.asarray(gradient)[ignored] == 0).all()
    assert (np.abs(gradient)[~ignored].max(axis=-1) > 0).all()
    other = jnp.where(jnp.asarray(ignored)[..., None], 7.0 - logits, logits)
    assert total_loss_and_gradient(other, targets)[0] == loss


def test_what_is_written_after_eos_does_not_matter(logits):
    other = np.where(np.array(MASK) == 1, TARGETS, PAD_TOKEN)
    other[0, 3] = 7
    losses = [total_loss_and_gradient(logits, jnp.asarray(targets))[0] for targets in (other, TARGETS)]
    assert losses[0] == losses[1]


def test_carry_loss(normal):
    """Counted as far as the targets go, their EOS included."""
    logits, carries = normal(1, 3, 5, 7), np.array([[1, 0, 2, 3, 4], [6, 5, 0, 0, 0], [1, 2, 3, 4, 5]])
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    each = -np.take_along_axis(log_probs, carries[..., None], -1)[..., 0]
    loss = sum_carry_loss(logits, jnp.asarray(carries), jnp.asarray(TARGETS))
    np.testing.assert_allclose(loss, (each * MASK).sum(), rtol=1e-6)


def test_column_loss(normal):
    """Of the last digit and of the tens of each sum that is not -1."""
    logits, tens_logits = normal(1, 3, 4, 13), normal(2, 3, 4, 45)
    sums = np.array([[12, 441, -1, -1], [0, 7, 10, 99], [5, -1, -1, -1]])
    digits, tens = (np.asarray(jax.nn.log_softmax(x)) for x in (logits, tens_logits))
    held = zip(*np.nonzero(sums >= 0), strict=True)
    total = -sum(digits[b, u, sums[b, u] % 10] + tens[b, u, sums[b, u] // 10] for b, u in held)
    loss = sum_column_loss(logits, tens_logits, jnp.asarray(sums))
    np.testing.assert_allclose(loss, total, rtol=1e-6)
