"""The JAX side of the speed comparison: a case as a function that makes one call and waits for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from parity.speed.cases import JAX, UNROLLED, UNROLLED_REMAT, Case
from ttm_jax.machine.machine import TokenTuringMachine
from ttm_jax.measure.unrolled import Unrolled
from ttm_jax.measure.workload import training_step
from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.model import TTMModel
from ttm_jax.multiplication.objective import create_state
from ttm_jax.multiplication.vocab import PAD_TOKEN
from ttm_jax.training.mesh import place

Call = Callable[[], jax.Array]
Apply = Callable[..., Any]


def describe() -> dict[str, Any]:
    """Say what the device is."""
    return {"device": jax.devices()[0].device_kind}


def warm_up() -> None:
    """Compile and run something small, so that starting the compiler is no part of a case's first call."""
    jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((8, 8))))


def build(case: Case, variant: str, folder: Path) -> Call:
    """Make a function that makes one call of the case, and returns its loss or outputs once they are computed."""
    params = jax.device_put(unflatten_dict(load_file(folder / "jax.safetensors"), sep="/"))
    batch = jax.device_put(case.batch())
    if case.is_multiplier:
        if case.kind == "train":
            return _train_multiplier(case.config, params, batch)
        return _multiply(TTMModel(case.config.model), params, batch["inputs"], case.steps)
    apply = _apply(case, variant)
    return {"train": _train, "forward": _forward, "stream": _stream}[case.kind](apply, params, batch["tokens"])


def _apply(case: Case, variant: str) -> Apply:
    """Return the machine in one of the JAX forms; as users train it, it recomputes by the default policy."""
    remat = case.kind == "train" and variant in (JAX, UNROLLED_REMAT)
    machine = TokenTuringMachine(**case.machine.options(), dtype=jnp.dtype(case.dtype), remat=remat)
    return Unrolled(machine, remat).apply if variant in (UNROLLED, UNROLLED_REMAT) else machine.apply


def _train_multiplier(config: Config, params: Any, batch: dict[str, jax.Array]) -> Call:
    placement = place(len(batch["targets"]))
    step = training_step(placement)
    state = placement.replicate(create_state(config).replace(params=params))
    divided = placement.divide(batch)

    def call() -> jax.Array:
        nonlocal state
        state, metrics = step(state, divided)
        return jax.block_until_ready(metrics["loss"])

    return call


def _multiply(model: TTMModel, params: Any, inputs_BxS: jax.Array, num_steps: int) -> Call:
    @jax.jit
    def multiply(params: Any, inputs_BxS: jax.Array) -> jax.Array:
        logits: Any = model.apply({"params": params}, inputs_BxS, num_steps=num_steps, method="raw_logits")
        return logits[..., :PAD_TOKEN]  # that of padding, the last, is a constant

    return lambda: jax.block_until_ready(multiply(params, inputs_BxS))


def _train(apply: Apply, params: Any, tokens_BxTxNxD: jax.Array) -> Call:
    """Make a step of Adam on the mean square difference of the last step's outputs from the first of its tokens.

    The last memory is a result, here and in `_forward`: the compiler would leave its write out otherwise.
    """
    optimizer = optax.adam(1e-4)

    def loss_fn(params: Any, tokens_BxTxNxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        outputs_BxTxRxD, memory_BxMxD = apply({"params": params}, tokens_BxTxNxD)
        output_BxRxD = outputs_BxTxRxD[:, -1].astype(jnp.float32)
        return jnp.mean(jnp.square(output_BxRxD - tokens_BxTxNxD[:, -1, : output_BxRxD.shape[1]])), memory_BxMxD

    def train_step(state: tuple[Any, Any], tokens_BxTxNxD: jax.Array) -> tuple[tuple[Any, Any], tuple[jax.Array, ...]]:
        params, opt_state = state
        results, grads = jax.value_and_grad(loss_fn, has_aux=True)(params, tokens_BxTxNxD)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), results

    train_step_jit = jax.jit(train_step, donate_argnums=0)
    state = (params, optimizer.init(params))

    def call() -> jax.Array:
        nonlocal state
        state, (loss, _) = jax.block_until_ready(train_step_jit(state, tokens_BxTxNxD))
        return loss

    return call


def _forward(apply: Apply, params: Any, tokens_BxTxNxD: jax.Array) -> Call:
    forward = jax.jit(lambda params, tokens: apply({"params": params}, tokens))
    return lambda: jax.block_until_ready(forward(params, tokens_BxTxNxD))[0]


def _stream(apply: Apply, params: Any, tokens_1x1xNxD: jax.Array) -> Call:
    def step(params: Any, memory_1xMxD: jax.Array, tokens_1x1xNxD: jax.Array) -> Any:
        return apply({"params": params}, tokens_1x1xNxD, memory=memory_1xMxD)

    step_jit = jax.jit(step, donate_argnums=1)
    memory_1xMxD = jnp.array(params["initial_memory"])

    def call() -> jax.Array:
        nonlocal memory_1xMxD
        outputs_1x1xRxD, memory_1xMxD = jax.block_until_ready(step_jit(params, memory_1xMxD, tokens_1x1xNxD))
        return outputs_1x1xRxD

    return call
