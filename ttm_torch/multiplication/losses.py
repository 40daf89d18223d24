"""The training loss: cross-entropy up to the first EOS, a tenth of a binary cross-entropy on where EOS is, and,
for models with a carry head, half a cross-entropy of the carries, or of the running sums.

Each part is a sum over a batch's target tokens. The loss is the total of the parts over the number of those tokens.
So the sums of micro-batches add up.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ttm_jax.multiplication.vocab import EOS_TOKEN
from ttm_torch.multiplication.metrics import create_target_mask
from ttm_torch.multiplication.model import extract_eos_probs

EOS_LOSS_SCALE = 0.1
CARRY_LOSS_SCALE = 0.5
PROBABILITY_EPS = 1e-7


def _cross_entropies(logits_BxSxV: Tensor, targets_BxS: Tensor) -> Tensor:
    """Compute the softmax cross-entropy at each position [B, S]."""
    return F.cross_entropy(logits_BxSxV.transpose(1, 2), targets_BxS.long(), reduction="none")


def compute_ce_loss(logits_BxSxV: Tensor, targets_BxS: Tensor) -> Tensor:
    """Compute the mean softmax cross-entropy over all positions."""
    return _cross_entropies(logits_BxSxV, targets_BxS).mean()


def compute_masked_ce_loss(logits_BxSxV: Tensor, targets_BxS: Tensor, mask_BxS: Tensor) -> Tensor:
    """Sum the cross-entropy over the positions where the mask is 1."""
    return (_cross_entropies(logits_BxSxV, targets_BxS) * mask_BxS).sum()


def compute_normalized_ce_loss(logits_BxSxV: Tensor, targets_BxS: Tensor) -> Tensor:
    """Compute the mean cross-entropy of a target token, EOS included and padding not."""
    mask_BxS = create_target_mask(targets_BxS)
    return compute_masked_ce_loss(logits_BxSxV, targets_BxS, mask_BxS) / mask_BxS.sum()


def find_eos_positions(targets_BxS: Tensor) -> Tensor:
    """Find the index [B] of the first EOS of each sequence; S where there is none."""
    is_eos_BxS = targets_BxS == EOS_TOKEN
    return torch.where(is_eos_BxS.any(dim=1), is_eos_BxS.int().argmax(dim=1), targets_BxS.shape[1])


def create_eos_target(positions_B: Tensor, seq_len: int) -> Tensor:
    """Mark with 1 (float32 [B, S]) each sequence's EOS position, 0 elsewhere; all 0 where it is `seq_len`."""
    return (torch.arange(seq_len, device=positions_B.device) == positions_B[:, None]).float()


def compute_eos_bce(probs_BxS: Tensor, targets_BxS: Tensor, mask_BxS: Tensor | None = None) -> Tensor:
    """Compute the mean binary cross-entropy of probabilities, where the mask is 1 (everywhere where None).

    Probabilities are kept 1e-7 away from 0 and 1, where the loss has no gradient.
    """
    losses_BxS = _binary_cross_entropies(probs_BxS, targets_BxS)
    mask_BxS = torch.ones_like(losses_BxS) if mask_BxS is None else mask_BxS
    return (losses_BxS * mask_BxS).sum() / mask_BxS.sum()


def _binary_cross_entropies(probs_BxS: Tensor, targets_BxS: Tensor) -> Tensor:
    p_BxS = probs_BxS.clamp(PROBABILITY_EPS, 1 - PROBABILITY_EPS)
    return -(targets_BxS * p_BxS.log() + (1 - targets_BxS) * torch.log1p(-p_BxS))


def sum_answer_loss(logits_BxSxV: Tensor, targets_BxS: Tensor) -> Tensor:
    """Sum cross-entropy + 0.1 x binary cross-entropy of EOS over the positions up to the first EOS."""
    mask_BxS = create_target_mask(targets_BxS)
    eos_target_BxS = create_eos_target(find_eos_positions(targets_BxS), targets_BxS.shape[1])
    eos_losses_BxS = _binary_cross_entropies(extract_eos_probs(logits_BxSxV), eos_target_BxS)
    return compute_masked_ce_loss(logits_BxSxV, targets_BxS, mask_BxS) + EOS_LOSS_SCALE * (
        (eos_losses_BxS * mask_BxS).sum()
    )


def compute_total_loss(logits_BxSxV: Tensor, targets_BxS: Tensor) -> Tensor:
    """Compute cross-entropy + 0.1 x binary cross-entropy of EOS, a target token, up to the first EOS."""
    return sum_answer_loss(logits_BxSxV, targets_BxS) / create_target_mask(targets_BxS).sum()


def sum_carry_loss(carry_logits_BxSxC: Tensor, carries_BxS: Tensor, targets_BxS: Tensor) -> Tensor:
    """Sum the cross-entropy of the carry out of each place, up to the first EOS of the targets."""
    return compute_masked_ce_loss(carry_logits_BxSxC, carries_BxS, create_target_mask(targets_BxS))


def sum_column_loss(logits_BxUxV: Tensor, carry_logits_BxUxC: Tensor, sums_BxU: Tensor) -> Tensor:
    """Sum the cross-entropies of the last digit and the tens of the column's sum after each machine step.

    Steps where the sum is -1 do not count.
    """
    mask_BxU = (sums_BxU >= 0).float()
    sums_BxU = sums_BxU.clamp(min=0)
    digits = compute_masked_ce_loss(logits_BxUxV, sums_BxU % 10, mask_BxU)
    tens = compute_masked_ce_loss(carry_logits_BxUxC, sums_BxU // 10, mask_BxU)
    return digits + tens
