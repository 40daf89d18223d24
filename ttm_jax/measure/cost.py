"""What a model costs: floating-point operations of a forward pass, peak memory of a training step."""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ttm_jax.hardware.allocator import release_freed_memory, resident_bytes
from ttm_jax.machine.flops import Machine, forward_flops
from ttm_jax.measure.input_shape import TRAIN_BATCH, check_input_shape
from ttm_jax.measure.program import MEGABYTE, Program
from ttm_jax.multiplication.config import Config, DataConfig
from ttm_jax.multiplication.model import TTMModel, head_cost, make_machine
from ttm_jax.multiplication.objective import create_state
from ttm_jax.multiplication.steps import CARRY_HEAD_TARGETS, num_machine_steps
from ttm_jax.training.mesh import add_over_devices, divide_by_data
from ttm_jax.training.step import train_step

MEMORY_SOURCES = ("program", "device")


def measure_flops(model: TTMModel | Machine, input_shape: tuple[int, ...] | None = None) -> int:
    """Count the floating-point operations of a forward pass in closed form: 2 x multiply-adds of all matrix products.

    Args:
        model: the multiplier, or a machine.
        input_shape: [B, S] of a multiplier, one problem where None; [B, T, N, D] of a machine.

    Raises:
        ValueError: if the shape is not the model's, or the multiplier has no machine.
    """
    shape = _input_shape(model, input_shape, 1)
    if not isinstance(model, TTMModel):
        B, T, N, D = shape
        return forward_flops(model, N, D, steps=T, batch=B)
    if model.config.kind != "machine":
        raise ValueError(f"measure_flops counts machines, not the baseline of kind {model.config.kind!r}")
    B, S = shape
    steps = num_machine_steps(model.config.schedule, S)
    machine = forward_flops(make_machine(model.config), S, model.config.width, steps=steps, batch=B)
    return machine + 2 * B * steps * head_cost(model.config)


def measure_memory(
    model: TTMModel | Machine, input_shape: tuple[int, ...] | None = None, source: str = "program"
) -> float:
    """Measure the peak memory of a training step in MB (10^6 bytes): parameters, optimiser, batch and temporaries.

    A step is the gradient and Adam's update, on one device, of the whole batch at a time. Of a multiplier it is
    `train_step`, all its places asked for; of a machine, a step on the mean square of its outputs and memory.

    Args:
        model: the multiplier, or a machine.
        input_shape: [B, S] of a multiplier, 128 problems where None; [B, T, N, D] of a machine.
        source: "program" is what the compiler planned, the same on every run. "device" is the most that the device had
            in use while a step ran, more than before. Its allocator says it, or on a Linux processor the resident set.

    Raises:
        ValueError: if the shape is not the model's, or there is no such source.
        RuntimeError: if the compiler or the device doesn't say, or if this process has already used more of a device
            whose peak cannot be set back.
    """
    if source not in MEMORY_SOURCES:
        raise ValueError(f"source must be one of {', '.join(MEMORY_SOURCES)}; got {source!r}")
    shape = _input_shape(model, input_shape, TRAIN_BATCH)
    step, make_arguments = _training(model, shape)
    program = Program(step, *jax.eval_shape(make_arguments), carries=True)
    if source == "program":
        if program.memory is None:
            raise RuntimeError("the compiler of this device doesn't say what memory a program takes")
        return program.memory["peak"] / MEGABYTE
    jax.block_until_ready(make_arguments())  # compiled before the memory is looked at
    taken = device_memory_taken(lambda: jax.block_until_ready(program.bind(*make_arguments())()))
    if taken is None:
        raise RuntimeError(
            "the device doesn't say what memory the step took, or this process had already used more: "
            "try a new process, or source='program'"
        )
    return taken / MEGABYTE


def _input_shape(model: Any, shape: tuple[int, ...] | None, batch_size: int) -> tuple[int, ...]:
    return check_input_shape(model.config.seq_len if isinstance(model, TTMModel) else None, shape, batch_size)


def _training(model: Any, shape: tuple[int, ...]) -> tuple[Callable, Callable[[], tuple[Any, Any]]]:
    """Return a training step, and a function that makes its arguments: the state, which it carries, and a batch."""
    if isinstance(model, TTMModel):
        config = Config(model=model.config, data=DataConfig(augment=()))  # which both schedules have

        def make_state_and_batch() -> tuple[Any, Any]:
            zeros = jnp.zeros(shape, jnp.int32)
            asked = jnp.zeros((shape[0], num_machine_steps(config.model.schedule, shape[1])), jnp.int32)
            batch = {"inputs": zeros, "targets": zeros, CARRY_HEAD_TARGETS[config.model.schedule]: asked}
            return create_state(config), batch

        return train_step, make_state_and_batch

    optimizer = optax.adam(1e-3)

    def make_params_and_tokens() -> tuple[Any, jax.Array]:
        tokens_BxTxNxD = jnp.zeros(shape)
        params = jax.jit(model.init)(jax.random.key(0), tokens_BxTxNxD[:, :1])
        return (params, optimizer.init(params)), tokens_BxTxNxD

    return machine_train_step(model, optimizer), make_params_and_tokens


def machine_train_step(machine: Any, optimizer: optax.GradientTransformation, mesh: Mesh | None = None) -> Callable:
    """Make an optimiser step of a bare machine on the mean square of its outputs and memory.

    It is a function of ((variables, optimiser state), tokens [B, T, N, D]) that returns ((variables, optimiser state),
    loss). The devices of the mesh divide the tokens between them, where it is given.
    """

    def loss_of(variables: Any, tokens_BxTxNxD: jax.Array) -> jax.Array:
        outputs_BxTxRxD, memory_BxMxD = machine.apply(variables, tokens_BxTxNxD)
        return jnp.mean(outputs_BxTxRxD**2) + jnp.mean(memory_BxMxD**2)

    def gradients_of(variables: Any, tokens_BxTxNxD: jax.Array) -> tuple[jax.Array, Any]:
        if mesh is None:
            return jax.value_and_grad(loss_of)(variables, tokens_BxTxNxD)

        def of_share(variables: Any, tokens: jax.Array) -> tuple[tuple[jax.Array, Any], None]:
            return add_over_devices(jax.value_and_grad(loss_of)(variables, tokens), mesh), None

        sums, _ = divide_by_data(of_share, mesh)(variables, tokens_BxTxNxD)
        return jax.tree.map(lambda x: x / mesh.size, sums)

    def step(state: tuple[Any, Any], tokens_BxTxNxD: jax.Array) -> tuple[tuple[Any, Any], jax.Array]:
        variables, opt_state = state
        loss, gradients = gradients_of(variables, tokens_BxTxNxD)
        updates, opt_state = optimizer.update(gradients, opt_state, variables)
        return (optax.apply_updates(variables, updates), opt_state), loss

    return step


def device_memory_taken(run: Callable[[], Any]) -> int | None:
    """Return the most bytes that the default device had in use while `run` ran, more than before; None if not known.

    The device's allocator says it, but its peak cannot be set back: None too where `run` stayed below an earlier peak.
    On a Linux processor the process's resident set says it.
    """
    device = _default_device()
    gc.collect()
    release_freed_memory()
    if before := device.memory_stats():
        run()
        peak = device.memory_stats()["peak_bytes_in_use"]
        return peak - before["bytes_in_use"] if peak > before["peak_bytes_in_use"] else None
    known = device.platform == "cpu" and _reset_resident_peak()
    resident = resident_bytes("VmRSS")
    run()
    peak = resident_bytes("VmHWM")
    return peak - resident if known and peak is not None and resident is not None else None


def _default_device() -> jax.Device:
    (device,) = jnp.zeros(()).devices()
    return device


def _reset_resident_peak() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return False  # a sandbox may forbid it
    return True
