"""Accuracy of predicted tokens against targets."""

from torch import Tensor

from ttm_jax.metrics import wilson_interval
from ttm_torch.losses import create_target_mask

__all__ = ["correct_positions", "exact_match", "position_accuracy", "sequence_accuracy", "wilson_interval"]


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
