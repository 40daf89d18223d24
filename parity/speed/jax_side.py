"""The JAX side of the speed comparison: a case as a function that makes one call and waits for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from parity.speed.cases import Case
from ttm_jax.machine.machine import TokenTuringMachine
from ttm_jax.measure.cost import machine_train_step
from ttm_jax.measure.workload import training_step
from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.model import TTMModel
from ttm_jax.multiplication.objective import create_state
from ttm_jax.multiplication.vocab import PAD_TOKEN
from ttm_jax.training.mesh import place

Call = Callable[[], jax.Array]


def describe() -> dict[str, Any]:
    """Say what the device is."""
    return {"device": jax.devices()[0].device_kind}


def warm_up(variant: str) -> None:
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
    # As users train it: it recomputes by the default policy.
    machine = TokenTuringMachine(**case.machine.options(), dtype=jnp.dtype(case.dtype), remat=case.kind == "train")
    kinds = {"train": _train, "forward": _forward, "stream": _stream}
    return kinds[case.kind](machine, {"params": params}, batch["tokens"])


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


def _train(machine: TokenTuringMachine, variables: Any, tokens_BxTxNxD: jax.Array) -> Call:
    """Make a step of Adam on the mean square of outputs and memory."""
    optimizer = optax.adam(1e-4)
    step = jax.jit(machine_train_step(machine, optimizer), donate_argnums=0)
    state = (variables, optimizer.init(variables))

    def call() -> jax.Array:
        nonlocal state
        state, loss = jax.block_until_ready(step(state, tokens_BxTxNxD))
        return loss

    return call


def _forward(machine: TokenTuringMachine, variables: Any, tokens_BxTxNxD: jax.Array) -> Call:
    # The last memory is a result too: the compiler would leave its write out otherwise.
    forward = jax.jit(machine.apply)
    return lambda: jax.block_until_ready(forward(variables, tokens_BxTxNxD))[0]


def _stream(machine: TokenTuringMachine, variables: Any, tokens_1x1xNxD: jax.Array) -> Call:
    step = jax.jit(machine.apply, donate_argnums=2)
    memory_1xMxD = jnp.array(variables["params"]["initial_memory"])

    def call() -> jax.Array:
        nonlocal memory_1xMxD
        outputs_1x1xRxD, memory_1xMxD = jax.block_until_ready(step(variables, tokens_1x1xNxD, memory_1xMxD))
        return outputs_1x1xRxD

    return call
