"""The training loop in PyTorch."""

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ttm_jax.multiplication.scores import answer_pairs
from ttm_jax.training.checkpoint_files import TORCH_FORMAT
from ttm_jax.training.config import Config
from ttm_jax.training.loop import TrainingLoop
from ttm_jax.training.plan import StepPlan
from ttm_torch.multiplication.model import check_model
from ttm_torch.multiplication.multiplier import Multiplier
from ttm_torch.training.checkpoint import CheckpointFolder, load_state
from ttm_torch.training.device import find_device
from ttm_torch.training.run_folder import device_name, provenance
from ttm_torch.training.step import TrainState, create_state, random_seed, train_step_with_metrics


class Trainer(TrainingLoop[TrainState]):
    """The loop in PyTorch.

    Args:
        config, workdir, resume, stop_requested: as of `TrainingLoop`.
        device: "cpu" or "cuda"; a GPU where there is one, if None.

    Raises:
        ConfigError: also where there is no such device, or the types are not the twin's.
    """

    checkpoint_format = TORCH_FORMAT

    def __init__(
        self,
        config: Config,
        workdir: str | Path,
        resume: bool = False,
        stop_requested: Callable[[], bool] = lambda: False,
        device: str | None = None,
    ):
        check_model(config.model)
        self.device = find_device(device)
        self._in_a_step: TrainState | None = None
        super().__init__(config, workdir, resume, stop_requested)

    def _create_state(self, plan: StepPlan) -> TrainState:
        return create_state(self.config, self.device)

    def _load_state(self, checkpoint: Path, plan: StepPlan) -> TrainState:
        return load_state(checkpoint, self.config, self.device)

    def _open_checkpoints(self, kind: str) -> CheckpointFolder:
        return CheckpointFolder(self.folder.path, kind)

    def _describe_origin(self) -> dict[str, Any]:
        return provenance(self.device)

    def describe_model(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.state.model.parameters())
        return f"{parameters:,} parameters on {device_name(self.device)}"

    def _train_step(self, arrays: dict[str, np.ndarray], plan: StepPlan) -> Mapping[str, Any]:
        state = self.state
        torch.manual_seed(random_seed(self.config, state.step))
        clip = self.config.optimizer.max_grad_norm
        self._in_a_step = state
        metrics = train_step_with_metrics(
            state.model, arrays, state.optimizer, state.scheduler, clip, plan.micro_batches
        )
        self._in_a_step = None
        return metrics

    def _fetch(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return {k: x.numpy(force=True) if isinstance(x, torch.Tensor) else x for k, x in metrics.items()}

    def _answer(self, pairs_Px2: np.ndarray, num_steps: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        multiplier = Multiplier(self.state.model, self.config, self.folder.path)
        return answer_pairs(multiplier, pairs_Px2, num_steps, batch_size)

    def _is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)

    def _next_plan(self, plan: StepPlan) -> StepPlan | None:
        return plan.next(self.config.data.batch_size)

    def _copy_state(self) -> Mapping[str, Any] | None:
        if self._in_a_step is self.state:
            return None  # it failed, and may have changed some of the parameters
        copy = BytesIO()
        torch.save([part.state_dict() for part in _parts(self.state)], copy)
        return {"step": self.state.step, "saved": copy}

    def _put_state(self, copy: Mapping[str, Any], plan: StepPlan) -> TrainState:
        copy["saved"].seek(0)
        saved = torch.load(copy["saved"], map_location="cpu", weights_only=True)
        for part, values in zip(_parts(self.state), saved, strict=True):
            part.load_state_dict(values)
        self._in_a_step = None
        return self.state


def _parts(state: TrainState) -> tuple[Any, ...]:
    return state.model, state.optimizer, state.scheduler
