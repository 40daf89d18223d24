"""What timed functions work on, and whether it fits: parameters, tokens, a training step of the multiplier."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ttm_jax.machine.flops import TRAINING_PASSES
from ttm_jax.measure.cost import machine_train_step, measure_flops
from ttm_jax.measure.program import Program, Turns
from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.model import TTMModel
from ttm_jax.multiplication.objective import create_state
from ttm_jax.multiplication.steps import num_machine_steps, training_arrays
from ttm_jax.multiplication.task import make_dataset
from ttm_jax.training.mesh import Placement
from ttm_jax.training.step import TrainState, train_step


def normal(*shape: int) -> jax.Array:
    """Draw standard normal float32 numbers, always the same, without compiling anything."""
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, np.float32))


def random_variables(module: Any, *inputs: Any) -> dict[str, Any]:
    """Draw variables of a module at their usual size, without compiling its initialisation."""
    generator = np.random.default_rng(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        if path[-1].key == "scale":
            return jnp.ones(leaf.shape, leaf.dtype)
        return jnp.asarray(0.05 * generator.standard_normal(leaf.shape, np.float32), leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, jax.eval_shape(module.init, jax.random.key(0), *inputs))


def enter_train_step(
    turns: Turns, name: str, machine: Any, variables: Any, tokens_BxTxNxD: jax.Array, placement: Placement
) -> None:
    """Let a step of Adam of a bare machine take part in turns, from a state of its own."""
    optimizer = optax.adam(1e-3)
    fresh = jax.tree.map(jnp.copy, (variables, optimizer.init(variables)))  # it is donated
    arguments = placement.replicate(fresh), placement.divide(tokens_BxTxNxD)
    step = machine_train_step(machine, optimizer, placement.step_mesh)
    turns.enter(name, Program(step, *arguments, carries=True, num_devices=len(placement.devices)), *arguments)


def training_batch(config: Config, batch_size: int) -> dict[str, np.ndarray]:
    """Make a batch of the config's last stage."""
    dataset = make_dataset(config, batch_size, config.curriculum.last_stage)
    batch, T = dataset.batch(0, 0), dataset.num_steps()
    return training_arrays(batch, config.model, T)


def training_step(placement: Placement) -> Callable[..., tuple[TrainState, dict[str, Any]]]:
    """Return `train_step` of a state and a batch, as the trainer calls it."""
    return partial(train_step, micro_batches=placement.micro_batches, remat=None, mesh=placement.step_mesh)


def training_program(placement: Placement, *arguments: Any) -> Program:
    """Compile the training step for its arguments, which `training_arguments` gives."""
    return Program(training_step(placement), *arguments, carries=True, num_devices=len(placement.devices))


def training_arguments(config: Config, batch_size: int, placement: Placement) -> tuple[TrainState, dict[str, Any]]:
    """Make a fresh state and a batch on the devices of the placement: what `train_step` takes."""
    return placement.replicate(create_state(config)), placement.divide(training_batch(config, batch_size))


def training_flops(config: Config, batch_size: int, num_steps: int) -> int:
    """Count the floating-point operations of a training step that answers `num_steps` places."""
    S = config.model.seq_len
    steps, most = (num_machine_steps(config.model.schedule, places) for places in (num_steps, S))
    return TRAINING_PASSES * measure_flops(TTMModel(config.model), (batch_size, S)) * steps // most
