"""Training in each mode, dropout off: the loss, its gradient by every parameter and 20 steps on the same batches."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import nn

import ttm_jax
import ttm_torch
from parity.cases import machine as machines
from parity.compare import FLOAT64_BOUND, Arrays, Row, compared
from parity.fast_jit import fast_jit
from parity.twins import as_arrays, draw, gradients_of, load_weights, random_params, to_numpy
from parity.weights import to_jax, twin_of
from ttm_jax.multiplication.config import ModelConfig
from ttm_jax.multiplication.objective import MultiplicationObjective, loss_fn as jax_loss_fn
from ttm_jax.multiplication.steps import training_arrays
from ttm_jax.training.config import OptimizerConfig
from ttm_jax.training.step import TrainState
from ttm_torch.multiplication.objective import loss_fn as torch_loss_fn

STEPS = 20
# Within 20 steps the rate warms up, decays and stays at its floor. A gradient that is only rounding moves nothing.
OPTIMIZER = OptimizerConfig(warmup_steps=8, decay_steps=10, weight_decay=1e-2, eps=1e-6)
OPTIMIZERS = tuple(
    dataclasses.replace(OPTIMIZER, name=name) for name in get_args(get_type_hints(OptimizerConfig)["name"])
)
SMALL = ModelConfig(
    width=8,
    memory_size=5,
    process_size=4,
    num_layers=1,
    mlp_dim=8,
    num_heads=2,
    dropout_rate=0.0,
    carry_head=True,
    dtype="float64",
    param_dtype="float64",
    remat="none",
)
PRODUCTS = dataclasses.replace(SMALL, schedule="product")
_DATA = ttm_jax.MultiplicationDataset(batch_size=4, start_stage=2)
_PAD = ttm_jax.PAD_TOKEN


def multiplier_batch(step: int, config: ModelConfig = SMALL) -> Arrays:
    return training_arrays(_DATA.batch(seed=3, step=step), config, _DATA.num_steps())


def multiplier_params(model: ttm_jax.TTMModel, dtype: Any) -> dict[str, Any]:
    inputs = jax.ShapeDtypeStruct((1, model.config.seq_len), jnp.int32)
    return random_params(model, inputs, dtype=dtype, num_steps=1)


def split_padding(logits_BxTxV: Any) -> tuple[Any, Any]:
    """Split off the logit of padding: beside its -10000, a difference in the others would not be seen."""
    return logits_BxTxV[..., :_PAD], logits_BxTxV[..., _PAD:]


class Task(NamedTuple):
    """What is trained. The loss functions return (loss, outputs by name) of a batch."""

    params: Any
    make_twin: Callable[[], nn.Module]
    batch: Callable[[int], Arrays]
    jax_loss: Callable[[Any, Any], Any]
    torch_loss: Callable[[nn.Module, Any], Any]


def multiplier_task(config: ModelConfig) -> Task:
    """Make the task of the multiplier: its loss on its data."""
    model = ttm_jax.TTMModel(config)

    def jax_loss(params: Any, batch: Any) -> Any:
        loss, logits = jax_loss_fn(params, model, batch, None)
        return loss.mean, {"logits": split_padding(logits)[0]}

    def torch_loss(twin: Any, batch: Any) -> Any:
        loss, logits = torch_loss_fn(twin, batch)
        return loss.mean, {"logits": split_padding(logits)[0]}

    params = multiplier_params(model, np.float64)
    batch = partial(multiplier_batch, config=config)
    return Task(params, partial(ttm_torch.TTMModel, config), batch, jax_loss, torch_loss)


def machine_task(machine: Any) -> Task:
    """Make the task of a machine from its initial memory: the mean squared error of outputs and memory."""
    machine = machine.clone(param_dtype=np.float64)
    tokens, width, num_tokens = (machines.B, machines.T, machines.N, machines.D), machines.D, machines.N
    outputs, memory = ((*tokens[:2], machine.process_size, width), (machines.B, machine.memory_size, width))

    def batch(step: int) -> Arrays:
        shapes = {"tokens": tokens, "outputs": outputs, "memory": memory}
        return {name: draw(3 * step + i, *shape) for i, (name, shape) in enumerate(shapes.items())}

    def loss(results: Any, batch: Any) -> Any:
        named = dict(zip(("outputs", "memory"), results, strict=True))
        return sum(((named[name] - batch[name]) ** 2).mean() for name in named), named

    return Task(
        random_params(machine, np.zeros(tokens)),
        partial(twin_of, machine, width=width, num_tokens=num_tokens),
        batch,
        lambda params, batch: loss(machine.apply({"params": params}, batch["tokens"]), batch),
        lambda twin, batch: loss(twin(batch["tokens"]), batch),
    )


class Training(NamedTuple):
    """The results of a training: outputs and gradients of the first step, all losses, the weights at the end."""

    outputs: Arrays
    gradients: Arrays
    losses: Arrays
    weights: Arrays


@dataclass(frozen=True, eq=False)
class TrainingCase:
    """A task that both twins train from the same weights with Adam, clipping included."""

    name: str
    make_task: Callable[[], Task]

    def rows(self, device: str) -> list[Row]:
        task, theirs = train_jax(self)
        ours = _train_torch(task, device)
        kinds = {
            "outputs": (ours.outputs, theirs.outputs),
            "gradients": (ours.gradients, theirs.gradients),
            f"losses of {STEPS} steps": (ours.losses, theirs.losses),
            "weights after them": (ours.weights, theirs.weights),
        }
        return [compared("float64", FLOAT64_BOUND, **kinds)]


@cache
def train_jax(case: TrainingCase) -> tuple[Task, Training]:
    with jax.enable_x64(True):
        # One vector of all parameters compiles faster; the optimiser leaf by leaf is `OptimizerCase`'s.
        task, optimizer = case.make_task(), optax.flatten(ttm_jax.make_optimizer(OPTIMIZER))

        @fast_jit
        def step(params: Any, opt_state: Any, batch: Any) -> Any:
            (loss, outputs), grads = jax.value_and_grad(task.jax_loss, has_aux=True)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return optax.apply_updates(params, updates), opt_state, loss, outputs, grads

        params, opt_state = task.params, _with_wide_counts(optimizer.init(task.params))
        first, losses = None, []
        for n in range(STEPS):
            params, opt_state, loss, outputs, grads = step(params, opt_state, task.batch(n))
            first = first or (jax.device_get(outputs), as_arrays(grads))
            losses.append(float(loss))
        assert first is not None
        return task, Training(*first, {"": np.array(losses)}, as_arrays(params))


def _train_torch(task: Task, device: str) -> Training:
    twin = task.make_twin()
    load_weights(twin, task.params, np.float64, device)
    optimizer = ttm_torch.make_optimizer(twin, OPTIMIZER)
    scheduler = ttm_torch.make_scheduler(optimizer, OPTIMIZER)
    first, losses = None, []
    for n in range(STEPS):
        batch = {name: torch.tensor(array, device=device) for name, array in task.batch(n).items()}
        loss, outputs = task.torch_loss(twin, batch)
        optimizer.zero_grad()
        loss.backward()
        first = first or ({name: to_numpy(x) for name, x in outputs.items()}, gradients_of(twin, task.params))
        assert OPTIMIZER.max_grad_norm is not None
        nn.utils.clip_grad_norm_(twin.parameters(), OPTIMIZER.max_grad_norm)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    assert first is not None
    return Training(*first, {"": np.array(losses)}, _weights(twin, task.params))


def _with_wide_counts(opt_state: Any) -> Any:
    """Make the counts int64: from int32, Optax would compute rates and bias corrections in float32."""
    return jax.tree.map(lambda x: x.astype("int64") if x.ndim == 0 else x, opt_state)


def _weights(twin: nn.Module, params: Any) -> Arrays:
    return as_arrays(to_jax(twin.state_dict(), params))


@dataclass(frozen=True, eq=False)
class OptimizerCase:
    """20 steps by the `train_step` of both packages: losses, rates, weights."""

    name: str
    config: OptimizerConfig
    jit: Callable[..., Any] = fast_jit

    def rows(self, device: str) -> list[Row]:
        params, losses, rates, weights = _jax_steps(self)
        twin = ttm_torch.TTMModel(SMALL)
        load_weights(twin, params, np.float64, device)
        optimizer = ttm_torch.make_optimizer(twin, self.config)
        scheduler = ttm_torch.make_scheduler(optimizer, self.config)
        twin_losses, twin_rates = [], []
        for n in range(STEPS):
            twin_rates.append(scheduler.get_last_lr()[0])
            loss = ttm_torch.train_step(twin, multiplier_batch(n), optimizer, scheduler, self.config.max_grad_norm)
            twin_losses.append(loss.item())
        kinds = {
            f"losses of {STEPS} steps": ({"": np.array(twin_losses)}, {"": losses}),
            "rates": ({"": np.array(twin_rates)}, {"": rates}),
            "weights after them": (_weights(twin, params), weights),
        }
        return [compared("float64", FLOAT64_BOUND, **kinds)]


@cache
def _jax_steps(case: OptimizerCase) -> tuple[Any, np.ndarray, np.ndarray, Arrays]:
    with jax.enable_x64(True):
        model = ttm_jax.TTMModel(SMALL)
        params = multiplier_params(model, np.float64)
        state: Any = TrainState(
            step=jnp.zeros((), jnp.int64),
            params=params,
            opt_state=_with_wide_counts(ttm_jax.make_optimizer(case.config).init(params)),
            key=jax.random.key(0),
            scale=None,
            carry=(),
            objective=MultiplicationObjective(SMALL),
            optimizer=case.config,
        )
        step = case.jit(lambda state, batch: ttm_jax.train_step(state, batch))
        told = []
        for n in range(STEPS):
            state, metrics = step(state, multiplier_batch(n))
            told.append((float(metrics["loss"]), float(metrics["learning_rate"])))
        losses, rates = np.array(told).T
        return params, losses, rates, as_arrays(state.params)


def _mode_case(read: str, write: str, processing: str) -> TrainingCase:
    modes: Any = dict(read=read, write=write, processing=processing)
    config = dataclasses.replace(SMALL, **modes)
    return TrainingCase(f"training/{read}-{write}-{processing}", partial(multiplier_task, config))


def _machine_case(machine: Any) -> TrainingCase:
    return TrainingCase(f"training/{machines.name_of(machine)}", partial(machine_task, machine))


# The multiplier in all modes that it has, the machine in those that it has not.
CASES = (
    *(_mode_case(*mode) for mode in machines.MODES),
    TrainingCase("training/schedule-product", partial(multiplier_task, PRODUCTS)),
    *(_machine_case(machine) for machine in machines.MACHINES[len(machines.MODES) :]),
    *(OptimizerCase(f"optimizer/{config.name}", config) for config in OPTIMIZERS),
    OptimizerCase("optimizer/default", OptimizerConfig(), jax.jit),  # optimised, as users run it
)
