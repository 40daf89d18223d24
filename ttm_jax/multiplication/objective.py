"""The multiplier as an objective of the trainer: its parameters, loss and predictions."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast, get_args

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ttm_jax.multiplication.config import Config, ModelConfig, RematName
from ttm_jax.multiplication.losses import CARRY_LOSS_SCALE, sum_answer_loss, sum_carry_loss, sum_column_loss
from ttm_jax.multiplication.metrics import create_target_mask, exact_match, position_accuracy, sequence_accuracy
from ttm_jax.multiplication.model import (
    TTMModel,
    apply_eos_masking,
    detect_eos,
    make_model,
    predict_tokens,
    select_answers,
)
from ttm_jax.multiplication.steps import CARRY_HEAD_TARGETS
from ttm_jax.training.config import ConfigError
from ttm_jax.training.optimizer import MACHINE_KERNELS
from ttm_jax.training.step import Loss, TrainState, make_state


@dataclass(frozen=True)
class MultiplicationObjective:
    """The multiplier of a config; its arrays are those of `training_arrays`."""

    config: ModelConfig
    rules: tuple[tuple[str, PartitionSpec], ...] = ()
    muon: str = MACHINE_KERNELS

    @property
    def model(self) -> TTMModel:
        """Return the linen module."""
        return make_model(self.config)

    @property
    def remats(self) -> tuple[str, ...]:
        names = get_args(RematName)
        return names[names.index(self.config.remat) + 1 :]

    def with_remat(self, remat: str) -> "MultiplicationObjective":
        return replace(self, config=replace(self.config, remat=cast(RematName, remat)))

    def init(self, key: jax.Array) -> dict:
        return _init_params(self.model, key)

    def init_carry(self, batch_size: int) -> tuple[()]:
        return ()

    def loss(self, params: dict, arrays: dict[str, jax.Array], key: jax.Array, carry: tuple[()]) -> tuple[Loss, tuple]:
        loss, _ = loss_fn(params, self.model, arrays, key)
        return loss, carry

    def predict(self, params: dict, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Predict the tokens [B, T] of the answers to "inputs" [B, S]; T is that of "targets" [B, T]."""
        logits: Any = self.model.apply({"params": params}, arrays["inputs"], num_steps=arrays["targets"].shape[1])
        return {"predictions": predict_tokens(logits)}


def make_objective(config: Config) -> MultiplicationObjective:
    """Make the objective of a config.

    Raises:
        ConfigError: if the config asks for float64 and JAX is not allowed it.
    """
    if "float64" in (config.model.dtype, config.model.param_dtype) and not jax.config.read("jax_enable_x64"):
        raise ConfigError("model.dtype and model.param_dtype float64 need JAX_ENABLE_X64=1 in the environment")
    return MultiplicationObjective(config.model)


def create_state(config: Config) -> TrainState:
    """Make a fresh state of a multiplication config; parameters and dropout follow from `config.train.seed` alone."""
    return make_state(MultiplicationObjective(config.model), config.optimizer, jax.random.key(config.train.seed))


@partial(jax.jit, static_argnums=0)
def _init_params(model: TTMModel, key: jax.Array) -> dict:
    inputs_1xS = jnp.zeros((1, model.config.seq_len), jnp.int32)
    return dict(model.init(key, inputs_1xS, num_steps=1)["params"])


def loss_fn(
    params: dict, model: TTMModel, batch: dict[str, jax.Array], key: jax.Array | None
) -> tuple[Loss, jax.Array]:
    """Compute loss and logits [B, T, 13] of the first T output places; dropout is on where a key is given.

    A carry head needs "carries" in the batch, or "sums" under the schedule "product". Without them its loss is left
    out, or ValueError raised where a key is given.
    """
    targets_BxT, T = batch["targets"], batch["targets"].shape[1]
    heads: Any = model.apply(
        {"params": params},
        batch["inputs"],
        train=key is not None,
        num_steps=T,
        method="heads",
        rngs={"dropout": key} if key is not None else {},
    )
    logits_BxUxV, carry_logits_BxUxC = heads
    logits_BxTxV = select_answers(model.config, batch["inputs"], logits_BxUxV, T)
    total = sum_answer_loss(logits_BxTxV, targets_BxT)
    wanted = CARRY_HEAD_TARGETS[model.config.schedule]
    if carry_logits_BxUxC is not None and wanted in batch:
        if wanted == "sums":
            carry_loss = sum_column_loss(logits_BxUxV, carry_logits_BxUxC, batch["sums"])
        else:
            carry_loss = sum_carry_loss(carry_logits_BxUxC, batch["carries"], targets_BxT)
        total += CARRY_LOSS_SCALE * carry_loss
    elif carry_logits_BxUxC is not None and key is not None:
        raise ValueError(f'a carry head is trained on batches with "{wanted}", as `training_arrays` gives')
    metrics = {"exact_match": exact_match(predict_tokens(logits_BxTxV), targets_BxT)}
    return Loss(total, create_target_mask(targets_BxT).sum(), metrics), logits_BxTxV


@partial(jax.jit, static_argnames="model")
def eval_step(model: TTMModel, params: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Compute predictions and accuracy on `batch` (as of `training_arrays`), dropout off, EOS masking on.

    Returns "predictions" [B, T], "probabilities" [B, T] (of the predicted tokens), "loss",
    "position_accuracy" and "sequence_accuracy".
    """
    loss, logits_BxTxV = loss_fn(params, model, batch, None)
    logits_BxTxV = apply_eos_masking(logits_BxTxV, detect_eos(logits_BxTxV))
    predictions_BxT = predict_tokens(logits_BxTxV)
    return {
        "predictions": predictions_BxT,
        "probabilities": jax.nn.softmax(logits_BxTxV, axis=-1).max(axis=-1),
        "loss": loss.mean,
        "position_accuracy": position_accuracy(predictions_BxT, batch["targets"]),
        "sequence_accuracy": sequence_accuracy(predictions_BxT, batch["targets"]),
    }
