"""Accuracy of predicted tokens against targets."""

from torch import Tensor

from ttm_jax.multiplication.metrics import wilson_interval
from ttm_jax.multiplication.vocab import EOS_TOKEN

__all__ = [
    "correct_positions",
    "create_target_mask",
    "exact_match",
    "position_accuracy",
    "sequence_accuracy",
    "wilson_interval",
]


def create_target_mask(targets_BxS: Tensor) -> Tensor:
    """1 (float32 [B, S]) up to and including the first EOS of each sequence, 0 after it; all 1 where there is none."""
    is_eos_BxS = (targets_BxS == EOS_TOKEN).int()
    before_BxS = is_eos_BxS.cumsum(dim=1) - is_eos_BxS
    return (before_BxS == 0).float()


def correct_positions(predictions_BxS: Tensor, targets_BxS: Tensor) -> Tensor:
    """Where (bool [B, S]) the predicted token is the target; also True after the target EOS: nothing is asked there."""
    return (predictions_BxS == targets_BxS) | (create_target_mask(targets_BxS) == 0)


def exact_match(predictions_BxS: Tensor, targets_BxS: Tensor) -> Tensor:
    """True (bool [B]) for each sequence whose every digit and EOS is right."""
    return correct_positions(predictions_BxS, targets_BxS).all(dim=1)


def position_accuracy(predictions_BxS: Tensor, targets_BxS: Tensor) -> Tensor:
    """Correct positions over valid positions: digits and the first EOS."""
    mask_BxS = create_target_mask(targets_BxS)
    return ((predictions_BxS == targets_BxS) * mask_BxS).sum() / mask_BxS.sum()


def sequence_accuracy(predictions_BxS: Tensor, targets_BxS: Tensor) -> Tensor:
    """Completely correct sequences over all sequences."""
    return exact_match(predictions_BxS, targets_BxS).float().mean()
