"""The two steps of a training."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ttm_torch.losses import CARRY_LOSS_SCALE, compute_carry_loss, compute_total_loss
from ttm_torch.metrics import position_accuracy, sequence_accuracy
from ttm_torch.multiplier import TTMModel, apply_eos_masking, detect_eos

_NAMES = ("inputs", "targets", "carries")


def loss_fn(model: TTMModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss and logits [B, T, 13] of the first T output positions; dropout is on in training mode."""
    logits_BxTxV, carry_logits_BxTxC = model.heads(batch["inputs"], batch["targets"].shape[1])
    loss = compute_total_loss(logits_BxTxV, batch["targets"])
    if carry_logits_BxTxC is not None:
        loss = loss + CARRY_LOSS_SCALE * compute_carry_loss(carry_logits_BxTxC, batch["carries"], batch["targets"])
    return loss, logits_BxTxV


def train_step(
    model: TTMModel,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None = None,
    max_grad_norm: float | None = 1.0,
) -> Tensor:
    """One optimiser step on `batch`; gives the loss, a scalar tensor on the model's device.

    Args:
        model: put in training mode.
        batch: tensors or arrays "inputs" [B, S], "targets" [B, T] and, for a carry head, "carries" [B, T], as a
            mapping or in that order. T machine steps are run.
        optimizer: of the model's parameters.
        scheduler: sets the rate of the next step.
        max_grad_norm: gradients are scaled down to this norm; None: left as they are.
    """
    model.train()
    loss, _ = loss_fn(model, _tensors(model, batch))
    optimizer.zero_grad()
    loss.backward()
    if max_grad_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), max_norm=max_grad_norm)
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return loss.detach()


@torch.no_grad()
def eval_step(model: TTMModel, batch: Any) -> dict[str, Tensor]:
    """Predictions and accuracy on `batch` (as of `train_step`), dropout off, EOS masking on.

    Returns "predictions" [B, T], "probabilities" [B, T] (of the predicted tokens), "loss",
    "position_accuracy" and "sequence_accuracy". The model is left in the mode that it was in.
    """
    was_training = model.training
    model.eval()
    batch = _tensors(model, batch)
    loss, logits_BxTxV = loss_fn(model, batch)
    model.train(was_training)
    logits_BxTxV = apply_eos_masking(logits_BxTxV, detect_eos(logits_BxTxV))
    predictions_BxT = logits_BxTxV.argmax(dim=-1)
    return {
        "predictions": predictions_BxT,
        "probabilities": logits_BxTxV.softmax(dim=-1).amax(dim=-1),
        "loss": loss,
        "position_accuracy": position_accuracy(predictions_BxT, batch["targets"]),
        "sequence_accuracy": sequence_accuracy(predictions_BxT, batch["targets"]),
    }


def _tensors(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    named = batch if isinstance(batch, Mapping) else dict(zip(_NAMES, batch, strict=False))
    device = next(model.parameters()).device
    return {name: torch.as_tensor(named[name], device=device) for name in _NAMES if name in named}
