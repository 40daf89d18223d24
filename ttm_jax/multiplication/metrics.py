"""Accuracy of predicted tokens against targets.

The functions take and return JAX or NumPy arrays; the module needs neither.
"""

from typing import Any

from jaxtyping import Float, Int

from ttm_jax.multiplication.vocab import EOS_TOKEN


def create_target_mask(targets_BxS: Int[Any, "B S"]) -> Float[Any, "B S"]:
    """Return 1 (float32) up to and including the first EOS of each sequence, 0 after it; all 1 where there is none."""
    xp = targets_BxS.__array_namespace__()
    is_eos_BxS = (targets_BxS == EOS_TOKEN).astype(xp.int32)
    before_BxS = xp.cumulative_sum(is_eos_BxS, axis=1) - is_eos_BxS
    return (before_BxS == 0).astype(xp.float32)


def correct_positions(predictions_BxS: Int[Any, "B S"], targets_BxS: Int[Any, "B S"]) -> Any:
    """Say where (bool [B, S]) the predicted token is the target; True after the target EOS, where nothing is asked."""
    return (predictions_BxS == targets_BxS) | (create_target_mask(targets_BxS) == 0)


def exact_match(predictions_BxS: Int[Any, "B S"], targets_BxS: Int[Any, "B S"]) -> Any:
    """Return True (bool [B]) for each sequence whose every digit and EOS is right."""
    return correct_positions(predictions_BxS, targets_BxS).all(axis=1)


def position_accuracy(predictions_BxS: Int[Any, "B S"], targets_BxS: Int[Any, "B S"]) -> Any:
    """Divide the correct positions by the valid ones: digits and the first EOS."""
    mask_BxS = create_target_mask(targets_BxS)
    return ((predictions_BxS == targets_BxS) * mask_BxS).sum() / mask_BxS.sum()


def sequence_accuracy(predictions_BxS: Int[Any, "B S"], targets_BxS: Int[Any, "B S"]) -> Any:
    """Divide the completely correct sequences by all sequences."""
    return exact_match(predictions_BxS, targets_BxS).mean()
