"""Accuracy of predicted tokens against targets."""

from torch import Tensor

from ttm_jax.multiplication.vocab import EOS_TOKEN


def create_target_mask(targets_BxS: Tensor) -> Tensor:
    """Mark with 1 (float32 [B, S]) all up to the first EOS, included, and with 0 what follows; all 1 without EOS."""
    is_eos_BxS = (targets_BxS == EOS_TOKEN).int()
    before_BxS = is_eos_BxS.cumsum(dim=1) - is_eos_BxS
    return (before_BxS == 0).float()


def correct_positions(predictions_BxS: Tensor, targets_BxS: Tensor) -> Tensor:
    """Tell (bool [B, S]) where the prediction is the target; True after the target EOS, where nothing is asked."""
    return (predictions_BxS == targets_BxS) | (create_target_mask(targets_BxS) == 0)


def exact_match(predictions_BxS: Tensor, targets_BxS: Tensor) -> Tensor:
    """Tell (bool [B]) of each sequence whether every digit and EOS is right."""
    return correct_positions(predictions_BxS, targets_BxS).all(dim=1)


def position_accuracy(predictions_BxS: Tensor, targets_BxS: Tensor) -> Tensor:
    """Divide the correct positions by the valid ones: digits and the first EOS."""
    mask_BxS = create_target_mask(targets_BxS)
    return ((predictions_BxS == targets_BxS) * mask_BxS).sum() / mask_BxS.sum()


def sequence_accuracy(predictions_BxS: Tensor, targets_BxS: Tensor) -> Tensor:
    """Divide the completely correct sequences by all sequences."""
    return exact_match(predictions_BxS, targets_BxS).float().mean()
