"""The multiplier as an objective of the trainer: its weights, loss and predictions."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from ttm_jax.multiplication.config import Config, ModelConfig
from ttm_jax.multiplication.steps import CARRY_HEAD_TARGETS
from ttm_torch.multiplication.losses import CARRY_LOSS_SCALE, sum_answer_loss, sum_carry_loss, sum_column_loss
from ttm_torch.multiplication.metrics import create_target_mask, exact_match, position_accuracy, sequence_accuracy
from ttm_torch.multiplication.model import (
    TTMModel,
    apply_eos_masking,
    check_model,
    detect_eos,
    predict_tokens,
    select_answers,
)
from ttm_torch.training.optimizer import MACHINE_WEIGHTS
from ttm_torch.training.step import Loss, TrainState, evaluation_mode, make_model, make_state, take_step


@dataclass(frozen=True)
class MultiplicationObjective:
    """The multiplier of a config, as an objective of the trainer; its arrays are those of `training_arrays`."""

    config: ModelConfig
    muon: str = MACHINE_WEIGHTS

    def make_model(self) -> TTMModel:
        return TTMModel(self.config)

    def init_carry(self, batch_size: int) -> tuple[()]:
        return ()

    def loss(self, model: TTMModel, arrays: Mapping[str, Tensor], carry: tuple[()]) -> tuple[Loss, tuple]:
        loss, _ = loss_fn(model, arrays)
        return loss, carry

    def predict(self, model: TTMModel, arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Predict the tokens [B, T] of the answers to "inputs" [B, S]; T is that of "targets" [B, T]."""
        return {"predictions": predict_tokens(model(arrays["inputs"], arrays["targets"].shape[1]))}


def make_objective(config: Config) -> MultiplicationObjective:
    """Make the objective of a config.

    Raises:
        ConfigError: for what the twin does not have.
    """
    check_model(config.model)
    return MultiplicationObjective(config.model)


def create_state(config: Config, device: torch.device | str = "cpu") -> TrainState:
    """Make a fresh state of a multiplication config; parameters follow from `config.train.seed` alone."""
    return make_state(MultiplicationObjective(config.model), config.optimizer, config.train.seed, device=device)


def create_model(config: Config) -> TTMModel:
    """Make the model of a fresh state, on the CPU; leave the global random numbers where they are."""
    model = make_model(MultiplicationObjective(config.model), config.train.seed)
    assert isinstance(model, TTMModel)
    return model


def loss_fn(model: TTMModel, batch: Mapping[str, Tensor]) -> tuple[Loss, Tensor]:
    """Compute loss and logits [B, T, 13] of the first T places; dropout is on in training mode.

    A carry head needs "carries" in the batch, or "sums" under the schedule "product". Without them its loss is left
    out in evaluation; training raises a ValueError.
    """
    targets_BxT, T = batch["targets"], batch["targets"].shape[1]
    logits_BxUxV, carry_logits_BxUxC = model.heads(batch["inputs"], T)
    logits_BxTxV = select_answers(model.config, batch["inputs"], logits_BxUxV, T)
    total = sum_answer_loss(logits_BxTxV, targets_BxT)
    wanted = CARRY_HEAD_TARGETS[model.config.schedule]
    if carry_logits_BxUxC is not None and wanted in batch:
        if wanted == "sums":
            carry_loss = sum_column_loss(logits_BxUxV, carry_logits_BxUxC, batch["sums"])
        else:
            carry_loss = sum_carry_loss(carry_logits_BxUxC, batch["carries"], targets_BxT)
        total = total + CARRY_LOSS_SCALE * carry_loss
    elif carry_logits_BxUxC is not None and model.training:
        raise ValueError(f'a carry head is trained on batches with "{wanted}", as `training_arrays` gives')
    metrics = {"exact_match": exact_match(predict_tokens(logits_BxTxV.detach()), targets_BxT)}
    return Loss(total, create_target_mask(targets_BxT).sum(), metrics), logits_BxTxV


def train_step(
    model: TTMModel,
    batch: Any,
    optimizer: torch.optim.Optimizer,
    scheduler: LRScheduler | None = None,
    max_grad_norm: float | None = 1.0,
) -> Tensor:
    """Take one optimiser step on `batch`; return the loss, a scalar tensor on the model's device.

    Args:
        model: put in training mode.
        batch: tensors or arrays "inputs" [B, S] and "targets" [B, T], as a mapping or in this order. A carry head
            takes "carries" [B, T] too, or "sums" [B, U] under the schedule "product". T, or U, machine steps are run.
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
    """Step as `train_step`; return "loss", "grad_norm" (before clipping), "learning_rate" and "exact_match" [B].

    Raises:
        ValueError: if `micro_batches` doesn't divide B, or a carry head has nothing to be trained on.
    """
    loss_of = partial(MultiplicationObjective(model.config).loss, model)
    arrays = _tensors(model, batch)
    metrics, _ = take_step(loss_of, model, arrays, optimizer, scheduler, max_grad_norm, micro_batches)
    return metrics


def eval_step(model: TTMModel, batch: Any) -> dict[str, Tensor]:
    """Compute predictions and accuracy on `batch` (as of `train_step`), dropout off, EOS masking on.

    Returns "predictions" [B, T], "probabilities" [B, T] (of the predicted tokens), "loss", "position_accuracy" and
    "sequence_accuracy". The model keeps the mode that it was in.
    """
    batch = _tensors(model, batch)
    with evaluation_mode(model):
        loss, logits_BxTxV = loss_fn(model, batch)
    logits_BxTxV = apply_eos_masking(logits_BxTxV, detect_eos(logits_BxTxV))
    predictions_BxT = predict_tokens(logits_BxTxV)
    return {
        "predictions": predictions_BxT,
        "probabilities": logits_BxTxV.softmax(dim=-1).amax(dim=-1),
        "loss": loss.mean,
        "position_accuracy": position_accuracy(predictions_BxT, batch["targets"]),
        "sequence_accuracy": sequence_accuracy(predictions_BxT, batch["targets"]),
    }


def _tensors(model: TTMModel, batch: Any) -> dict[str, Tensor]:
    names = ("inputs", "targets", CARRY_HEAD_TARGETS[model.config.schedule])
    named = batch if isinstance(batch, Mapping) else dict(zip(names, batch, strict=False))
    device = next(model.parameters()).device
    return {name: torch.as_tensor(named[name], device=device) for name in names if name in named}
