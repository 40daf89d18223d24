"""The training loop in JAX."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from ttm_jax.multiplication.multiplier import Multiplier
from ttm_jax.multiplication.scores import answer_pairs
from ttm_jax.training.checkpoint import CheckpointFolder, load_state
from ttm_jax.training.checkpoint_files import JAX_FORMAT
from ttm_jax.training.config import Config, RematName
from ttm_jax.training.loop import TrainingLoop
from ttm_jax.training.mesh import Placement, place
from ttm_jax.training.plan import StepPlan
from ttm_jax.training.run_folder import provenance
from ttm_jax.training.step import TrainState, check_precision, create_state, random_keys, train_step


class Trainer(TrainingLoop[TrainState]):
    """The loop in JAX.

    Its batches are divided between `num_devices` devices: where None, as `place` says.

    Raises:
        ConfigError: also where the config asks for float64 and JAX is not allowed it, or there are not so many devices,
            or they don't divide the batch.
    """

    checkpoint_format = JAX_FORMAT

    def __init__(
        self,
        config: Config,
        workdir: str | Path,
        resume: bool = False,
        stop_requested: Callable[[], bool] = lambda: False,
        num_devices: int | None = None,
    ):
        check_precision(config)
        self._placements: dict[str | None, Placement] = {None: place(config.data.batch_size, num_devices=num_devices)}
        super().__init__(config, workdir, resume, stop_requested)

    def _create_state(self, plan: StepPlan) -> TrainState:
        return self._placement(plan).replicate(create_state(self.config))

    def _load_state(self, checkpoint: Path, plan: StepPlan) -> TrainState:
        return self._placement(plan).replicate(load_state(checkpoint, self.config))

    def _open_checkpoints(self, kind: str) -> CheckpointFolder:
        return CheckpointFolder(self.folder.path, kind)

    def _describe_origin(self) -> dict[str, Any]:
        return {**provenance(), "devices": len(self._placements[None].devices)}

    def describe_model(self) -> str:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        devices = self._placement(self.progress.plan).devices
        number = f"{len(devices)} x " if len(devices) > 1 else ""
        return f"{parameters:,} parameters on {number}{devices[0].device_kind}"

    def _train_step(self, arrays: dict[str, np.ndarray], plan: StepPlan) -> Mapping[str, Any]:
        placement = self._placement(plan)
        self.state, metrics = train_step(
            self.state,
            placement.divide(arrays),
            micro_batches=placement.at_least(plan.micro_batches),
            remat=plan.remat,
            mesh=placement.mesh,
        )
        return metrics

    def _fetch(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return jax.device_get(metrics)

    def _answer(self, pairs_Px2: np.ndarray, num_steps: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        params = jax.tree.map(lambda leaf: leaf.addressable_data(0), self.state.params)  # of the first device
        multiplier = Multiplier(self.state.model, {"params": params}, self.config, self.folder.path)
        return answer_pairs(multiplier, pairs_Px2, num_steps, batch_size)

    def _is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)

    def _next_plan(self, plan: StepPlan) -> StepPlan | None:
        remats = get_args(RematName)
        stronger = remats[remats.index(self.config.model.remat) + 1 :]
        placement = self._placement(plan)
        return self._as_run(plan).next(placement.share, stronger, _has_cpu_besides())

    def _copy_state(self) -> Mapping[str, Any] | None:
        state = self.state
        changing = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(changing)):
            return None
        return jax.tree.map(np.array, jax.device_get(changing))  # what device_get gives may be the device's own memory

    def _put_state(self, copy: Mapping[str, Any], plan: StepPlan) -> TrainState:
        return self._placement(plan).replicate(self.state.replace(**copy, key=random_keys(self.config)[1]))

    def _placement(self, plan: StepPlan) -> Placement:
        if plan.device not in self._placements:
            self._placements[plan.device] = place(self.config.data.batch_size, plan.device)
        return self._placements[plan.device]

    def _as_run(self, plan: StepPlan) -> StepPlan:
        """The plan with as many micro-batches as a device makes of its share."""
        return replace(plan, micro_batches=self._placement(plan).at_least(plan.micro_batches))

    def _describe_plan(self) -> str:
        plan = self.progress.plan
        return self._as_run(plan).describe(self.config.data.batch_size, len(self._placement(plan).devices))


def _has_cpu_besides() -> bool:
    """Whether there is a CPU besides the default device; JAX_PLATFORMS may leave it out."""
    if jax.default_backend() == "cpu":
        return False
    try:
        return len(jax.local_devices(backend="cpu")) > 0
    except RuntimeError:
        return False
