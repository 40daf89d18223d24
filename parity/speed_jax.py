"""The JAX side of the speed comparison: a case as a function that makes one call and waits for it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file

from parity.speed_cases import UNROLLED, Case
from ttm_jax.config import Config
from ttm_jax.machine import TokenTuringMachine, TokenTuringMachineStep
from ttm_jax.multiplier import TTMModel
from ttm_jax.state import create_state, train_step

Call = Callable[[], np.ndarray | jax.Array]


def build(case: Case, variant: str, folder: Path) -> Call:
    """One call of the case; its result, computed when it returns, is a loss or outputs."""
    params = jax.device_put(unflatten_dict(load_file(folder / "jax.safetensors"), sep="/"))
    batch = jax.device_put(case.batch())
    if case.is_multiplier:
        return _train_multiplier(case.config, params, batch) if case.kind == "train" else _multiply(case, params, batch)
    apply = _unrolled(case) if variant == UNROLLED else _machine(case).apply
    return {"train": _train, "forward": _forward, "stream": _stream}[case.kind](apply, params, batch["tokens"])


def describe() -> dict[str, Any]:
    """Device and versions."""
    return {"device": jax.devices()[0].device_kind, "jax": jax.__version__}


def warm_up() -> None:
    """Compiles and runs something small, so that starting the compiler is no part of a case's first call."""
    jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((8, 8))))


def _machine(case: Case) -> TokenTuringMachine:
    return TokenTuringMachine(**case.machine.options(), dtype=jnp.dtype(case.dtype), remat=case.kind == "train")


def _unrolled(case: Case) -> Callable[..., tuple[jax.Array, jax.Array]]:
    """The machine as a Python loop over its steps, each traced and compiled anew, as the original has it."""
    step = TokenTuringMachineStep(**case.machine.options(), dtype=jnp.dtype(case.dtype))

    def apply(variables: Any, tokens_BxTxNxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        params = variables["params"]
        B, T, _, D = tokens_BxTxNxD.shape
        memory_BxMxD = jnp.broadcast_to(params["initial_memory"], (B, case.machine.memory_size, D))
        outputs = []
        for t in range(T):
            memory_BxMxD, output_BxRxD = step.apply({"params": params["step"]}, memory_BxMxD, tokens_BxTxNxD[:, t])
            outputs.append(output_BxRxD)
        return jnp.stack(outputs, axis=1), memory_BxMxD

    return apply


def _train_multiplier(config: Config, params: Any, batch: dict[str, jax.Array]) -> Call:
    state = create_state(config).replace(params=params)

    def call() -> jax.Array:
        nonlocal state
        state, metrics = train_step(state, batch)
        return jax.block_until_ready((metrics["loss"], state))[0]

    return call


def _multiply(case: Case, params: Any, batch: dict[str, jax.Array]) -> Call:
    model = TTMModel(case.config.model)

    @jax.jit
    def forward(params: Any, inputs_BxS: jax.Array) -> Any:
        return model.apply({"params": params}, inputs_BxS, num_steps=case.steps, method="raw_logits")

    return lambda: jax.block_until_ready(forward(params, batch["inputs"]))


def _train(apply: Callable[..., Any], params: Any, tokens_BxTxNxD: jax.Array) -> Call:
    """Adam on the mean square of the last step's outputs."""
    optimizer = optax.adam(1e-4)

    def loss_fn(params: Any, tokens_BxTxNxD: jax.Array) -> jax.Array:
        outputs_BxTxRxD, _ = apply({"params": params}, tokens_BxTxNxD)
        return jnp.mean(jnp.square(outputs_BxTxRxD[:, -1].astype(jnp.float32)))

    @jax.jit(donate_argnums=0)
    def step(state: Any, tokens_BxTxNxD: jax.Array) -> Any:
        params, opt_state = state
        loss, grads = jax.value_and_grad(loss_fn)(params, tokens_BxTxNxD)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    state = (params, optimizer.init(params))

    def call() -> jax.Array:
        nonlocal state
        state, loss = step(state, tokens_BxTxNxD)
        return jax.block_until_ready((loss, state))[0]

    return call


def _forward(apply: Callable[..., Any], params: Any, tokens_BxTxNxD: jax.Array) -> Call:
    forward = jax.jit(lambda params, tokens: apply({"params": params}, tokens)[0])
    return lambda: jax.block_until_ready(forward(params, tokens_BxTxNxD))


def _stream(apply: Callable[..., Any], params: Any, tokens_1x1xNxD: jax.Array) -> Call:
    @jax.jit(donate_argnums=1)
    def step(params: Any, memory_1xMxD: jax.Array, tokens: jax.Array) -> Any:
        outputs, memory_1xMxD = apply({"params": params}, tokens, memory=memory_1xMxD)
        return outputs, memory_1xMxD

    memory_1xMxD = jnp.array(params["initial_memory"])

    def call() -> jax.Array:
        nonlocal memory_1xMxD
        outputs, memory_1xMxD = jax.block_until_ready(step(params, memory_1xMxD, tokens_1x1xNxD))
        return outputs

    return call
