"""The training loss: cross-entropy of the answer, of where it ends, and of the carries.

It is the cross-entropy up to the first EOS, plus 0.1 x a binary cross-entropy of where EOS is. With a carry head,
0.5 x a cross-entropy of the carries, or of the running sums, is added. Each part is a sum over a batch's target tokens,
and the loss is their total over the number of those tokens: the sums of micro-batches and of devices add up.
"""

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ttm_jax.multiplication.metrics import create_target_mask
from ttm_jax.multiplication.model import extract_eos_probs
from ttm_jax.multiplication.vocab import EOS_TOKEN

EOS_LOSS_SCALE = 0.1
CARRY_LOSS_SCALE = 0.5
PROBABILITY_EPS = 1e-7


def compute_ce_loss(logits_BxSxV: Float[Array, "B S V"], targets_BxS: Int[Array, "B S"]) -> Float[Array, ""]:
    """Compute the mean softmax cross-entropy over all positions."""
    return optax.softmax_cross_entropy_with_integer_labels(logits_BxSxV, targets_BxS).mean()


def compute_masked_ce_loss(
    logits_BxSxV: Float[Array, "B S V"], targets_BxS: Int[Array, "B S"], mask_BxS: Float[Array, "B S"]
) -> Float[Array, ""]:
    """Sum the cross-entropy over the positions where the mask is 1."""
    losses_BxS = optax.softmax_cross_entropy_with_integer_labels(logits_BxSxV, targets_BxS)
    return jnp.sum(losses_BxS * mask_BxS)


def compute_normalized_ce_loss(logits_BxSxV: Float[Array, "B S V"], targets_BxS: Int[Array, "B S"]) -> Float[Array, ""]:
    """Compute the mean cross-entropy of the target tokens, EOS included and padding not."""
    mask_BxS = create_target_mask(targets_BxS)
    return compute_masked_ce_loss(logits_BxSxV, targets_BxS, mask_BxS) / mask_BxS.sum()


def find_eos_positions(targets_BxS: Int[Array, "B S"]) -> Int[Array, "B"]:
    """Find the index of the first EOS of each sequence; S where there is none."""
    is_eos_BxS = targets_BxS == EOS_TOKEN
    return jnp.where(is_eos_BxS.any(axis=1), jnp.argmax(is_eos_BxS, axis=1), targets_BxS.shape[1])


def create_eos_target(positions_B: Int[Array, "B"], seq_len: int) -> Float[Array, "B {seq_len}"]:
    """Make a target of 1 at each sequence's EOS position, 0 elsewhere; all 0 where the position is `seq_len`."""
    return jax.nn.one_hot(positions_B, seq_len)


def compute_eos_bce(
    probs_BxS: Float[Array, "B S"],
    targets_BxS: Float[Array, "B S"],
    mask_BxS: Float[Array, "B S"] | None = None,
) -> Float[Array, ""]:
    """Compute the mean binary cross-entropy of probabilities where the mask is 1 (everywhere without one).

    Probabilities are kept 1e-7 away from 0 and 1, where the loss has no gradient.
    """
    losses_BxS = _binary_cross_entropies(probs_BxS, targets_BxS)
    mask_BxS = jnp.ones_like(losses_BxS) if mask_BxS is None else mask_BxS
    return jnp.sum(losses_BxS * mask_BxS) / mask_BxS.sum()


def _binary_cross_entropies(probs_BxS: Float[Array, "B S"], targets_BxS: Float[Array, "B S"]) -> Float[Array, "B S"]:
    p_BxS = jnp.clip(probs_BxS, PROBABILITY_EPS, 1 - PROBABILITY_EPS)
    return -(targets_BxS * jnp.log(p_BxS) + (1 - targets_BxS) * jnp.log1p(-p_BxS))


def sum_answer_loss(logits_BxSxV: Float[Array, "B S V"], targets_BxS: Int[Array, "B S"]) -> Float[Array, ""]:
    """Sum cross-entropy + 0.1 x binary cross-entropy of EOS over the positions up to the first EOS."""
    mask_BxS = create_target_mask(targets_BxS)
    eos_target_BxS = create_eos_target(find_eos_positions(targets_BxS), targets_BxS.shape[1])
    eos_losses_BxS = _binary_cross_entropies(extract_eos_probs(logits_BxSxV), eos_target_BxS)
    return compute_masked_ce_loss(logits_BxSxV, targets_BxS, mask_BxS) + EOS_LOSS_SCALE * jnp.sum(
        eos_losses_BxS * mask_BxS
    )


def compute_total_loss(logits_BxSxV: Float[Array, "B S V"], targets_BxS: Int[Array, "B S"]) -> Float[Array, ""]:
    """Compute cross-entropy + 0.1 x binary cross-entropy of EOS, as means over the positions up to the first EOS."""
    return sum_answer_loss(logits_BxSxV, targets_BxS) / create_target_mask(targets_BxS).sum()


def sum_carry_loss(
    carry_logits_BxSxC: Float[Array, "B S C"], carries_BxS: Int[Array, "B S"], targets_BxS: Int[Array, "B S"]
) -> Float[Array, ""]:
    """Sum the cross-entropy of the carry out of each place, up to the first EOS of the targets."""
    return compute_masked_ce_loss(carry_logits_BxSxC, carries_BxS, create_target_mask(targets_BxS))


def sum_column_loss(
    logits_BxUxV: Float[Array, "B U V"], carry_logits_BxUxC: Float[Array, "B U C"], sums_BxU: Int[Array, "B U"]
) -> Float[Array, ""]:
    """Sum the cross-entropies of the last digit and of the tens of each step's column sum; sums of -1 are left out."""
    mask_BxU = (sums_BxU >= 0).astype(jnp.float32)
    sums_BxU = jnp.maximum(sums_BxU, 0)
    digits = compute_masked_ce_loss(logits_BxUxV, sums_BxU % 10, mask_BxU)
    tens = compute_masked_ce_loss(carry_logits_BxUxC, sums_BxU // 10, mask_BxU)
    return digits + tens
