"""The state of a training and the two pure steps on it."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from ttm_jax.multiplication.losses import CARRY_LOSS_SCALE, compute_carry_loss, compute_sum_loss, compute_total_loss
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
from ttm_jax.training.config import Config, ConfigError, RematName
from ttm_jax.training.mesh import divide_gradients, mean_over_devices
from ttm_jax.training.optimizer import learning_rate_schedule, make_optimizer


class TrainState(struct.PyTreeNode):
    """All that training changes on the device; model and optimiser ride along as static values."""

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    key: jax.Array
    model: TTMModel = struct.field(pytree_node=False)
    config: Config = struct.field(pytree_node=False)


def check_precision(config: Config) -> None:
    """Raises ConfigError where the config asks for float64 and JAX is not allowed it."""
    if "float64" in (config.model.dtype, config.model.param_dtype) and not jax.config.read("jax_enable_x64"):
        raise ConfigError("model.dtype and model.param_dtype float64 need JAX_ENABLE_X64=1 in the environment")


def create_state(config: Config) -> TrainState:
    """A fresh state; parameters and dropout follow from `config.train.seed` alone."""
    model = make_model(config.model)
    init_key, dropout_key = random_keys(config)
    params = _init_params(model, init_key)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(config.optimizer).init(params),
        key=dropout_key,
        model=model,
        config=config,
    )


def random_keys(config: Config) -> tuple[jax.Array, jax.Array]:
    """The keys of initialisation and of dropout."""
    init_key, dropout_key = jax.random.split(jax.random.key(config.train.seed))
    return init_key, dropout_key


@partial(jax.jit, static_argnums=0)
def _init_params(model: TTMModel, key: jax.Array) -> dict:
    inputs_1xS = jnp.zeros((1, model.config.seq_len), jnp.int32)
    return dict(model.init(key, inputs_1xS, num_steps=1)["params"])


def loss_fn(
    params: dict, model: TTMModel, batch: dict[str, jax.Array], key: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Loss and logits [B, T, 13] of the first T output positions; dropout is on where a key is given.

    Without "carries", or "sums" under the schedule "product", in the batch the loss of a carry head is left out, which
    training refuses.
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
    loss = compute_total_loss(logits_BxTxV, targets_BxT)
    if carry_logits_BxUxC is None:
        return loss, logits_BxTxV
    wanted = CARRY_HEAD_TARGETS[model.config.schedule]
    if wanted not in batch:
        if key is not None:
            raise ValueError(f'a carry head is trained on batches with "{wanted}", as `training_arrays` gives')
        return loss, logits_BxTxV
    if wanted == "sums":
        carry_loss = compute_sum_loss(logits_BxUxV, carry_logits_BxUxC, batch["sums"], targets_BxT)
    else:
        carry_loss = compute_carry_loss(carry_logits_BxUxC, batch["carries"], targets_BxT)
    return loss + CARRY_LOSS_SCALE * carry_loss, logits_BxTxV


@partial(jax.jit, donate_argnums=0, static_argnames=("micro_batches", "remat", "mesh"))
def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    micro_batches: int = 1,
    remat: RematName | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One optimiser step on `batch`: "inputs" [B, S], "targets" [B, T] and, for a carry head, "carries" [B, T].

    T machine steps are run. Under the schedule "product" a carry head has "sums" [B, U] in place of the carries, and U
    steps are run: see `training_arrays`. Three options change where and in what order it is computed and, to rounding,
    nothing else:

    Args:
        state: donated, so don't use it again.
        batch: of the next step.
        micro_batches: equal parts of the batch, or of a device's share of it, whose gradients are computed one after
            the other and added up, which takes less memory. With dropout, the i-th draws from its own key,
            `fold_in(key of the step, i)`, so that other units are dropped than in the whole batch.
        remat: in place of the config's, where it is given.
        mesh: devices on one axis that divide the batch equally between them, where it is given. Their gradients are
            added up, and each takes the whole of the optimiser's step. State and batch lie on them as `Placement`
            puts them. With dropout, the i-th draws from its own key, `fold_in(key of the step, i)`.

    Returns the next state and metrics: "loss", "grad_norm" (before clipping), "learning_rate" and "exact_match"
    [B], True for each example answered right.

    Raises:
        ValueError: if the devices and `micro_batches` don't divide B, or a carry head has nothing to be trained on.
    """
    key = jax.random.fold_in(state.key, state.step)
    model = state.model
    if remat is not None:
        model = model.clone(config=dataclasses.replace(model.config, remat=remat))
    loss, matches_B, grads = _gradients(state.params, model, batch, key, micro_batches, mesh)
    optimizer = make_optimizer(state.config.optimizer)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": learning_rate_schedule(state.config.optimizer)(state.step),
        "exact_match": matches_B,
    }
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def _gradients(
    params: dict, model: TTMModel, batch: dict[str, jax.Array], key: jax.Array, micro_batches: int, mesh: Mesh | None
) -> tuple[jax.Array, jax.Array, dict]:
    """Loss, whether each example is answered right [B], and gradients."""
    if mesh is None:
        return _gradients_of_parts(params, model, batch, key, micro_batches)
    (axis,) = mesh.axis_names

    def gradients(everywhere: tuple[dict, jax.Array], share: dict[str, jax.Array]) -> tuple[Any, jax.Array]:
        params, key = everywhere
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))
        loss, matches, grads = _gradients_of_parts(params, model, share, key, micro_batches)
        count = create_target_mask(share["targets"]).sum()  # the loss is a mean over so many tokens
        return mean_over_devices((loss, grads), axis, count), matches

    (loss, grads), matches_B = divide_gradients(gradients, mesh)((params, key), batch)
    return loss, matches_B, grads


def _gradients_of_parts(
    params: dict, model: TTMModel, batch: dict[str, jax.Array], key: jax.Array, micro_batches: int
) -> tuple[jax.Array, jax.Array, dict]:
    """As `_gradients`, on one device."""

    def gradients(batch: dict[str, jax.Array], key: jax.Array) -> tuple[jax.Array, jax.Array, dict]:
        (loss, logits_BxTxV), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, model, batch, key)
        return loss, exact_match(predict_tokens(logits_BxTxV), batch["targets"]), grads

    if micro_batches == 1:
        return gradients(batch, key)
    B = batch["targets"].shape[0]
    if micro_batches < 1 or B % micro_batches:
        raise ValueError(f"micro_batches must divide the batch of {B}, got {micro_batches}")

    def add(total: dict, part: tuple[dict[str, jax.Array], jax.Array]) -> tuple[dict, tuple[jax.Array, ...]]:
        batch, i = part
        count = create_target_mask(batch["targets"]).sum()  # the loss is a mean over so many tokens
        loss, matches, grads = gradients(batch, jax.random.fold_in(key, i))
        return jax.tree.map(lambda t, g: t + count.astype(t.dtype) * g, total, grads), (count, count * loss, matches)

    parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), params)
    total, (counts, losses, matches) = jax.lax.scan(add, zeros, (parts, jnp.arange(micro_batches)))
    count = counts.sum()
    grads = jax.tree.map(lambda t, x: (t / count.astype(t.dtype)).astype(x.dtype), total, params)
    return losses.sum() / count, matches.reshape(B), grads


@partial(jax.jit, static_argnames="model")
def eval_step(model: TTMModel, params: dict, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Predictions and accuracy on `batch` (as of `train_step`), dropout off, EOS masking on.

    Returns "predictions" [B, T], "probabilities" [B, T] (of the predicted tokens), "loss",
    "position_accuracy" and "sequence_accuracy".
    """
    loss, logits_BxTxV = loss_fn(params, model, batch, None)
    logits_BxTxV = apply_eos_masking(logits_BxTxV, detect_eos(logits_BxTxV))
    predictions_BxT = predict_tokens(logits_BxTxV)
    return {
        "predictions": predictions_BxT,
        "probabilities": jax.nn.softmax(logits_BxTxV, axis=-1).max(axis=-1),
        "loss": loss,
        "position_accuracy": position_accuracy(predictions_BxT, batch["targets"]),
        "sequence_accuracy": sequence_accuracy(predictions_BxT, batch["targets"]),
    }
