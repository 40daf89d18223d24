"""PyTorch as an engine of the training loop."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ttm_jax.training.checkpoint_files import TORCH_FORMAT
from ttm_jax.training.config import OptimizerConfig
from ttm_jax.training.plan import StepPlan, make_plans
from ttm_jax.training.rows import predict_rows
from ttm_jax.training.task import Arrays
from ttm_torch.training.checkpoint import CheckpointFolder, load_model, load_state
from ttm_torch.training.device import device_name, provenance
from ttm_torch.training.step import Objective, TrainState, evaluation_mode, make_state, random_seed, take_step


class TorchEngine:
    """The engine of PyTorch; its methods are those of `ttm_jax.training.engine.Engine`.

    Args:
        objective: model and loss.
        optimizer: the optimiser's config.
        seed: of weights and dropout.
        batch_size: B.
        device: where to compute.
    """

    format = TORCH_FORMAT
    leads = True

    def __init__(
        self, objective: Objective, optimizer: OptimizerConfig, seed: int, batch_size: int, device: torch.device
    ):
        self._objective, self._optimizer, self._seed = objective, optimizer, seed
        self._batch_size, self._device = batch_size, device
        self.plans = tuple(make_plans(batch_size))

    def start(self, plan: StepPlan, init: Path | None = None) -> TrainState:
        state = make_state(self._objective, self._optimizer, self._seed, self._batch_size, self._device)
        if init is not None:
            load_model(init, state.model)
        return state

    def load(self, checkpoint: Path, plan: StepPlan) -> TrainState:
        return load_state(checkpoint, self.start(plan))

    def open_checkpoints(self, workdir: Path, kind: str) -> CheckpointFolder:
        return CheckpointFolder(workdir, kind)

    def step(self, state: TrainState, arrays: Arrays, plan: StepPlan) -> tuple[TrainState, Mapping[str, Any]]:
        torch.manual_seed(random_seed(self._seed, state.step))
        metrics, state.carry = take_step(
            partial(self._objective.loss, state.model),
            state.model,
            {name: torch.as_tensor(array, device=self._device) for name, array in arrays.items()},
            state.optimizer,
            state.scheduler,
            self._optimizer.max_grad_norm,
            plan.micro_batches,
            state.carry,
        )
        return state, metrics

    def read(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return {k: x.numpy(force=True) if isinstance(x, torch.Tensor) else x for k, x in metrics.items()}

    def predict(self, state: TrainState, arrays: Arrays, batch_size: int) -> Arrays:
        def predict(chunk: Arrays) -> dict[str, torch.Tensor]:
            tensors = {name: torch.as_tensor(array, device=self._device) for name, array in chunk.items()}
            return self._objective.predict(state.model, tensors)

        with evaluation_mode(state.model):
            return predict_rows(predict, arrays, batch_size, lambda results: [self.read(found) for found in results])

    def ran_out(self, error: Exception) -> bool:
        return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)

    def describe(self, state: TrainState, plan: StepPlan) -> str:
        parameters = sum(parameter.numel() for parameter in state.model.parameters())
        return f"{parameters:,} parameters on {device_name(self._device)}"

    def describe_plan(self, plan: StepPlan) -> str:
        return plan.describe(self._batch_size)

    def origin(self) -> dict[str, Any]:
        return provenance(self._device)
