"""What a model costs: floating-point operations of a forward pass, peak memory of a training step."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ttm_jax.measure.input_shape import TRAIN_BATCH, check_input_shape
from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.steps import CARRY_HEAD_TARGETS, num_machine_steps
from ttm_torch.machine.machine import SimpleTokenTuringMachine, TokenTuringMachine
from ttm_torch.multiplication.model import TTMModel
from ttm_torch.multiplication.objective import train_step
from ttm_torch.training.optimizer import make_optimizer
from ttm_torch.training.step import evaluation_mode

Model = TTMModel | TokenTuringMachine | SimpleTokenTuringMachine
MEGABYTE = 1e6


def measure_flops(model: Model, input_shape: tuple[int, ...] | None = None) -> int:
    """Count the floating-point operations of a forward pass: 2 x the multiply-adds of all matrix products.

    They are counted as they run. `ttm_jax.measure_flops` has the same number in closed form.

    Args:
        model: the multiplier, or a machine.
        input_shape: [B, S] of a multiplier, one problem where None; [B, T, N, D] of a machine.

    Raises:
        ValueError: if the shape is not the model's.
    """
    B, *rest = _input_shape(model, input_shape, 1)
    # The counter's hooks fail where gradients are off.
    with evaluation_mode(model), torch.enable_grad(), FlopCounterMode(display=False) as counter:
        model(_zeros(model, (1, *rest)))
    return B * counter.get_total_flops()


def measure_memory(model: Model, input_shape: tuple[int, ...] | None = None) -> float:
    """Measure the peak memory of a training step in MB (10^6 bytes), on a copy of the model, on its device.

    A step is the gradient and Adam's update. For a multiplier it is `train_step`, with all its places asked for. For a
    machine the loss is the mean square of its outputs and memory. Parameters, gradients, optimiser state, batch and
    all else that exists while the step runs are counted. On CUDA, PyTorch's allocator counts. On a processor it keeps
    no account, so the storages of all tensors are added up; what an operation needs for itself alone is missing.

    Args:
        model: the multiplier, or a machine.
        input_shape: [B, S] of a multiplier, 128 problems where None; [B, T, N, D] of a machine.

    Raises:
        ValueError: if the shape is not the model's.
    """
    B, *rest = _input_shape(model, input_shape, TRAIN_BATCH)
    device = next(model.parameters()).device
    meter = _AllocatorPeak(device) if device.type == "cuda" else _LiveStorages()
    step = _make_training(copy.deepcopy(model))
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), meter:
        step((1, *rest))  # makes the optimiser's state
        step((B, *rest))
    return meter.peak / MEGABYTE


def _input_shape(model: Model, shape: tuple[int, ...] | None, batch_size: int) -> tuple[int, ...]:
    return check_input_shape(model.config.seq_len if isinstance(model, TTMModel) else None, shape, batch_size)


def _zeros(model: Model, shape: tuple[int, ...]) -> Tensor:
    parameter = next(model.parameters())
    dtype = torch.int32 if isinstance(model, TTMModel) else parameter.dtype
    return torch.zeros(shape, dtype=dtype, device=parameter.device)


def _make_training(model: Model) -> Callable[[tuple[int, ...]], Any]:
    """Make a function of an input shape that trains the model for one step on zeros of that shape."""
    if isinstance(model, TTMModel):
        optimizer = make_optimizer(model, Config().optimizer)

        def step(shape: tuple[int, ...]) -> None:
            zeros, schedule = _zeros(model, shape), model.config.schedule
            asked = _zeros(model, (shape[0], num_machine_steps(schedule, shape[1])))
            batch = {"inputs": zeros, "targets": zeros, CARRY_HEAD_TARGETS[schedule]: asked}
            train_step(model, batch, optimizer)

        return step

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def machine_step(shape: tuple[int, ...]) -> None:
        outputs_BxTxRxD, memory_BxMxD = model.train()(_zeros(model, shape))
        optimizer.zero_grad()
        (outputs_BxTxRxD.square().mean() + memory_BxMxD.square().mean()).backward()
        optimizer.step()

    return machine_step


class _AllocatorPeak:
    """The peak bytes of tensors on a CUDA device, less those that were there when this object was made."""

    def __init__(self, device: torch.device):
        self._device, self._before = device, torch.cuda.memory_allocated(device)

    def __enter__(self) -> None:
        torch.cuda.reset_peak_memory_stats(self._device)

    def __exit__(self, *error: object) -> None:
        self.peak = torch.cuda.max_memory_allocated(self._device) - self._before


class _LiveStorages(TorchDispatchMode):
    """The peak bytes of the storages of all tensors that operations take or give, from first use to end."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._live = 0
        self._seen = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._see, (args, kwargs, results))
        return results

    def _see(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage not in self._seen:
            self._seen.add(storage)
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._lose, storage.nbytes())
        return tensor

    def _lose(self, num_bytes: int) -> None:
        self._live -= num_bytes
