"""Accuracy of predicted tokens against targets, and the interval of a proportion.

The functions take and return JAX or NumPy arrays; the module needs neither.
"""

import math
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


def wilson_interval(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Compute Wilson's score interval of a proportion, 95 % by default; (0, 1) where there is no trial."""
    if total == 0:
        return 0.0, 1.0
    p = correct / total
    centre = p + z * z / (2 * total)
    spread = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    return max(0.0, (centre - spread) / scale), min(1.0, (centre + spread) / scale)
