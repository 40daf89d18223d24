"""The state of a training and the two steps on it."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from ttm_jax.training.config import Config
from ttm_torch.multiplication.losses import CARRY_LOSS_SCALE, compute_carry_loss, compute_sum_loss, compute_total_loss
from ttm_torch.multiplication.metrics import create_target_mask, exact_match, position_accuracy, sequence_accuracy
from ttm_torch.multiplication.model import TTMModel, apply_eos_masking, detect_eos, predict_tokens, select_answers
from ttm_torch.multiplication.steps import CARRY_HEAD_TARGETS
from ttm_torch.training.optimizer import Scheduler, make_optimizer, make_scheduler


@dataclass
class TrainState:
    """All that training changes."""

    model: TTMModel
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler

    @property
    def step(self) -> int:
        """Optimiser steps done."""
        return self.scheduler.last_epoch


def create_state(config: Config, device: torch.device | str = "cpu") -> TrainState:
    """A fresh state; parameters follow from `config.train.seed` alone."""
    model = create_model(config).to(device)
    optimizer = make_optimizer(model, config.optimizer)
    return TrainState(model, optimizer, make_scheduler(optimizer, config.optimizer))


def create_model(config: Config) -> TTMModel:
    """The model of a fresh state, on the CPU; the global random numbers are left where they are."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):  # whatever the default device is
        torch.random.default_generator.manual_seed(random_seed(config))  # of the CPU alone, which is what was forked
        return TTMModel(config.model)


def random_seed(config: Config, step: int = -1) -> int:
    """The seed of the initialisation, or of the dropout in step n: a resumed run drops what it would have dropped."""
    return int(np.random.SeedSequence([config.train.seed, step + 1]).generate_state(1, np.uint64)[0])


def loss_fn(model: TTMModel, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Loss and logits [B, T, 13] of the first T output positions; dropout is on in training mode.

    Without "carries", or "sums" under the schedule "product", in the batch the loss of a carry head is left out, which
    training refuses.
    """
    targets_BxT, T = batch["targets"], batch["targets"].shape[1]
    logits_BxUxV, carry_logits_BxUxC = model.heads(batch["inputs"], T)
    logits_BxTxV = select_answers(model.config, batch["inputs"], logits_BxUxV, T)
    loss = compute_total_loss(logits_BxTxV, targets_BxT)
    if carry_logits_BxUxC is None:
        return loss, logits_BxTxV
    wanted = CARRY_HEAD_TARGETS[model.config.schedule]
    if wanted not in batch:
        if model.training:
            raise ValueError(f'a carry head is trained on batches with "{wanted}", as `training_arrays` gives')
        return loss, logits_BxTxV
    if wanted == "sums":
        carry_loss = compute_sum_loss(logits_BxUxV, carry_logits_BxUxC, batch["sums"], targets_BxT)
    else:
        carry_loss = compute_carry_loss(carry_logits_BxUxC, batch["carries"], targets_BxT)
    return loss + CARRY_LOSS_SCALE * carry_loss, logits_BxTxV


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
        batch: tensors or arrays "inputs" [B, S], "targets" [B, T] and, for a carry head, "carries" [B, T], or "sums"
            [B, U] under the schedule "product", as a mapping or in that order. T, or U, machine steps are run.
        optimizer: of the model's parameters.
        scheduler: sets the rate of the next step.
        max_grad_norm: gradients are scaled down to this norm; None: left as they are.
    """
    return train_step_with_metrics(model, batch, optimizer, scheduler, max_grad_norm)["loss"]


def train_step_with_metrics(
    model: TTMModel,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None = None,
    max_grad_norm: float | None = 1.0,
    micro_batches: int = 1,
) -> dict[str, Any]:
    """As `train_step`; gives "loss", "grad_norm" (before clipping), "learning_rate" and "exact_match" [B].

    Gradients are computed of so many equal parts of the batch, one after the other, and added up.

    Raises:
        ValueError: if `micro_batches` doesn't divide B, or a carry head has nothing to be trained on.
    """
    model.train()
    batch = _tensors(model, batch)
    optimizer.zero_grad()
    loss, matches_B = _compute_gradients(model, batch, micro_batches)
    metrics = {
        "loss": loss,
        "grad_norm": _clip_gradients(model, max_grad_norm),
        "learning_rate": optimizer.param_groups[0]["lr"],
        "exact_match": matches_B,
    }
    optimizer.step()
    if scheduler is not None:
        scheduler.step()
    return metrics


def _compute_gradients(model: TTMModel, batch: dict[str, Tensor], micro_batches: int) -> tuple[Tensor, Tensor]:
    """Adds to the parameters' gradients; loss, and whether each example is answered right [B].

    The loss is a mean over target tokens, so that of a micro-batch counts by its share of them.
    """
    B = len(batch["targets"])
    if micro_batches < 1 or B % micro_batches:
        raise ValueError(f"micro_batches must divide the batch of {B}, got {micro_batches}")
    count, losses, matches = create_target_mask(batch["targets"]).sum(), [], []
    for start in range(0, B, B // micro_batches):
        part = {name: tensor[start : start + B // micro_batches] for name, tensor in batch.items()}
        loss, logits_BxTxV = loss_fn(model, part)
        loss = loss * (create_target_mask(part["targets"]).sum().to(loss.dtype) / count)
        loss.backward()
        losses.append(loss.detach())
        matches.append(exact_match(predict_tokens(logits_BxTxV.detach()), part["targets"]))
    return torch.stack(losses).sum(), torch.cat(matches)


def _clip_gradients(model: nn.Module, max_norm: float | None) -> Tensor:
    """Scales the gradients down to a norm, where one is given; the norm that they had."""
    if max_norm is None:
        return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm=max_norm)


@contextmanager
def evaluation_mode(model: nn.Module) -> Generator[None, None, None]:
    """Dropout off and no gradients; afterwards the model is in the mode that it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def eval_step(model: TTMModel, batch: Any) -> dict[str, Tensor]:
    """Predictions and accuracy on `batch` (as of `train_step`), dropout off, EOS masking on.

    Returns "predictions" [B, T], "probabilities" [B, T] (of the predicted tokens), "loss",
    "position_accuracy" and "sequence_accuracy". The model is left in the mode that it was in.
    """
    batch = _tensors(model, batch)
    with evaluation_mode(model):
        loss, logits_BxTxV = loss_fn(model, batch)
    logits_BxTxV = apply_eos_masking(logits_BxTxV, detect_eos(logits_BxTxV))
    predictions_BxT = predict_tokens(logits_BxTxV)
    return {
        "predictions": predictions_BxT,
        "probabilities": logits_BxTxV.softmax(dim=-1).amax(dim=-1),
        "loss": loss,
        "position_accuracy": position_accuracy(predictions_BxT, batch["targets"]),
        "sequence_accuracy": sequence_accuracy(predictions_BxT, batch["targets"]),
    }


def _tensors(model: TTMModel, batch: Any) -> dict[str, Tensor]:
    names = ("inputs", "targets", CARRY_HEAD_TARGETS[model.config.schedule])
    named = batch if isinstance(batch, Mapping) else dict(zip(names, batch, strict=False))
    device = next(model.parameters()).device
    return {name: torch.as_tensor(named[name], device=device) for name in names if name in named}
