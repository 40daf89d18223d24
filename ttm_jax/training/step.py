"""The state of a training and one pure step on it, whatever the objective."""

from collections.abc import Hashable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh, PartitionSpec

from ttm_jax.machine.layers import at_least_float32
from ttm_jax.training.config import OptimizerConfig
from ttm_jax.training.mesh import DATA_AXIS, MODEL_AXIS, add_over_devices, divide_by_data, shardings_of
from ttm_jax.training.optimizer import learning_rate_schedule, make_optimizer
from ttm_jax.training.precision import LossScale

Params = Any
Carry = Any
Rules = tuple[tuple[str, PartitionSpec], ...]


class Loss(NamedTuple):
    """The loss of a batch as a sum and what it is a mean over: both are added up over micro-batches and devices.

    Attributes:
        total: summed over the items of the batch.
        count: how many items these are, or their weight.
        metrics: of each example [B].
    """

    total: jax.Array
    count: jax.Array
    metrics: dict[str, jax.Array]

    @property
    def mean(self) -> jax.Array:
        return self.total / self.count


class Objective(Hashable, Protocol):
    """A model with its loss. Static under jit: two that are equal share their compilations.

    Attributes:
        rules: mesh axes of parameters, by a regular expression of the end of their path; the first that matches
            counts, where its axes divide the parameter.
        muon: a regular expression of the paths of the kernels that Muon takes.
        remats: names of the rematerialisation policies that keep less for the backward pass than the objective's own,
            the strongest last.
    """

    @property
    def rules(self) -> Rules: ...
    @property
    def muon(self) -> str: ...
    @property
    def remats(self) -> tuple[str, ...]: ...

    def init(self, key: jax.Array) -> Params:
        """Draw fresh parameters."""
        ...

    def init_carry(self, batch_size: int) -> Carry:
        """Make what the first batch of a run is given from the batch before: leaves [B, ...], or ()."""
        ...

    def loss(self, params: Params, arrays: dict[str, jax.Array], key: jax.Array, carry: Carry) -> tuple[Loss, Carry]:
        """Compute the loss of a batch, and what the next batch is given; `key` is dropout's."""
        ...

    def predict(self, params: Params, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """Compute what an evaluation asks for, each [B, ...], without dropout."""
        ...

    def with_remat(self, remat: str) -> "Objective":
        """Give the same objective with another rematerialisation policy."""
        ...


class TrainState(struct.PyTreeNode):
    """All that training changes on the device; saved, restored and copied whole.

    Attributes:
        step: optimiser steps done.
        params: the parameters.
        opt_state: the optimiser's state.
        key: of dropout; that of step n is `fold_in(key, n)`.
        scale: the loss scale; None where the loss is not scaled.
        carry: what the next batch is given from the one before, leaves [B, ...]; () where that is nothing.
        objective: model and loss, static.
        optimizer: the optimiser's config, static.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    key: jax.Array
    scale: LossScale | None
    carry: Carry
    objective: Objective = struct.field(pytree_node=False)
    optimizer: OptimizerConfig = struct.field(pytree_node=False)


def make_state(
    objective: Objective,
    optimizer: OptimizerConfig,
    key: jax.Array,
    batch_size: int = 1,
    scale: LossScale | None = None,
    params: Params | None = None,
) -> TrainState:
    """Make a fresh state; dropout, and parameters where none are given, follow from the key alone."""
    init_key, dropout_key = jax.random.split(key)
    params = objective.init(init_key) if params is None else params
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=make_optimizer(optimizer, objective.muon).init(params),
        key=dropout_key,
        scale=scale,
        carry=objective.init_carry(batch_size),
        objective=objective,
        optimizer=optimizer,
    )


@partial(jax.jit, donate_argnums=0, static_argnames=("micro_batches", "remat", "mesh"))
def train_step(
    state: TrainState,
    batch: dict[str, jax.Array],
    micro_batches: int = 1,
    remat: str | None = None,
    mesh: Mesh | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """Take one optimiser step.

    Three options change where and in what order it is computed and, to rounding, nothing else:

    Args:
        state: donated, so don't use it again.
        batch: what the objective takes, each array [B, ...]. Of the multiplier that is what `training_arrays` gives.
        micro_batches: equal parts of the batch, or of a device's share of it, whose gradients are computed one after
            the other and added up, which takes less memory. With dropout, the i-th draws from its own key,
            `fold_in(key of the step, i)`, so that other units are dropped than in the whole batch.
        remat: in place of the objective's own, where it is given.
        mesh: the devices of `Placement`, where there are several. Those of its data axis divide the batch equally
            between them; with dropout, the i-th draws from its own key, `fold_in(key of the step, i)`.

    Returns the next state and metrics: "loss", "grad_norm" (before clipping), "learning_rate", those of the objective
    [B] ("exact_match" of the multiplier, True for each example answered right), and with a loss scale "skipped".

    Raises:
        ValueError: if the devices and `micro_batches` don't divide B, or the objective misses an array.
    """
    objective = state.objective if remat is None else state.objective.with_remat(remat)
    key = jax.random.fold_in(state.key, state.step)
    sums, metrics, carry = _sums(objective, state, batch, key, micro_batches, mesh)
    count = sums.count if state.scale is None else sums.count * state.scale.value
    grads = jax.tree.map(lambda g, x: (at_least_float32(g) / count).astype(x.dtype), sums.grads, state.params)
    grad_norm = optax.tree.norm(grads)
    updates, opt_state = make_optimizer(state.optimizer, objective.muon).update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    if mesh is not None and mesh.shape[MODEL_AXIS] > 1:
        params, opt_state = (
            jax.lax.with_sharding_constraint(tree, shardings_of(tree, mesh, objective.rules))
            for tree in (params, opt_state)
        )
    metrics = {
        "loss": sums.total / sums.count,
        "grad_norm": grad_norm,
        "learning_rate": learning_rate_schedule(state.optimizer)(state.step),
        **metrics,
    }
    changed = dict(params=params, opt_state=opt_state, carry=carry)
    if state.scale is not None:
        finite = jnp.isfinite(grad_norm)
        before = {name: getattr(state, name) for name in changed}
        changed = jax.tree.map(lambda new, old: jnp.where(finite, new, old), changed, before)
        changed["scale"] = state.scale.update(finite)
        metrics["skipped"] = ~finite & (state.scale.value > 1.0)  # at its floor the loss itself is at fault
    return state.replace(step=state.step + 1, **changed), metrics


class _Sums(NamedTuple):
    """Gradients of the loss's total, the total and the count: of a part of the batch, or added up over several."""

    grads: Params
    total: jax.Array
    count: jax.Array


def _sums(
    objective: Objective, state: TrainState, batch: Any, key: jax.Array, micro_batches: int, mesh: Mesh | None
) -> tuple[_Sums, dict[str, jax.Array], Carry]:
    """The sums over the batch, the metrics of its examples, and the next carry."""
    if mesh is None or mesh.shape[DATA_AXIS] == 1:
        return _sums_of_parts(objective, state, batch, key, micro_batches)

    def of_share(state: TrainState, key: jax.Array, share: tuple[Any, Carry]) -> tuple[_Sums, Any]:
        batch, carry = share
        key = jax.random.fold_in(key, jax.lax.axis_index(DATA_AXIS))
        sums, metrics, carry = _sums_of_parts(objective, state.replace(carry=carry), batch, key, micro_batches)
        return add_over_devices(sums, mesh), (metrics, carry)

    without_carry = state.replace(carry=(), opt_state=())
    sums, (metrics, carry) = divide_by_data(of_share, mesh, num_whole=2)(without_carry, key, (batch, state.carry))
    return sums, metrics, carry


def _sums_of_parts(
    objective: Objective, state: TrainState, batch: Any, key: jax.Array, micro_batches: int
) -> tuple[_Sums, dict[str, jax.Array], Carry]:
    """As `_sums`, of one device's share, in so many micro-batches."""

    def sums_of(batch: Any, carry: Carry, key: jax.Array) -> tuple[_Sums, tuple[dict[str, jax.Array], Carry]]:
        def scaled_total(params: Params) -> tuple[jax.Array, tuple[Loss, Carry]]:
            loss, after = objective.loss(params, batch, key, carry)
            scaled = loss.total if state.scale is None else loss.total * state.scale.value
            return scaled, (loss, after)

        grads, (loss, after) = jax.grad(scaled_total, has_aux=True)(state.params)
        return _Sums(grads, loss.total, loss.count), (loss.metrics, after)

    if micro_batches == 1:
        sums, (metrics, carry) = sums_of(batch, state.carry, key)
        return sums, metrics, carry
    B = jax.tree.leaves(batch)[0].shape[0]
    if micro_batches < 1 or B % micro_batches:
        raise ValueError(f"micro_batches must divide the batch of {B}, got {micro_batches}")

    def add(sums: _Sums, part: tuple[Any, jax.Array]) -> tuple[_Sums, Any]:
        (batch, carry), i = part
        more, rest = sums_of(batch, carry, jax.random.fold_in(key, i))
        return jax.tree.map(lambda x, y: x + y.astype(x.dtype), sums, more), rest

    parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), (batch, state.carry))
    like, _ = jax.eval_shape(sums_of, *jax.tree.map(lambda x: x[0], parts), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32)), like)
    sums, rest = jax.lax.scan(add, zeros, (parts, jnp.arange(micro_batches)))
    metrics, carry = jax.tree.map(lambda x: x.reshape(B, *x.shape[2:]), rest)
    return sums, metrics, carry


@partial(jax.jit, static_argnums=0)
def predict_step(objective: Objective, params: Params, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Compute the objective's predictions."""
    return objective.predict(params, arrays)
