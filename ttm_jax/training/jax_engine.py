"""JAX as an engine of the training loop."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax

from ttm_jax.training.checkpoint import CheckpointFolder, load_params, load_state
from ttm_jax.training.checkpoint_files import JAX_FORMAT
from ttm_jax.training.config import OptimizerConfig
from ttm_jax.training.mesh import Placement, place, shardings_of
from ttm_jax.training.plan import StepPlan, make_plans
from ttm_jax.training.precision import LossScale
from ttm_jax.training.rows import predict_rows
from ttm_jax.training.run_folder import provenance
from ttm_jax.training.settings import lenient
from ttm_jax.training.step import Objective, TrainState, make_state, predict_step, train_step
from ttm_jax.training.task import Arrays


class JaxEngine:
    """See `ttm_jax.training.engine.Engine`.

    Args:
        objective: model and loss.
        optimizer: the optimiser's config.
        seed: of parameters and dropout.
        batch_size: B.
        num_devices: how many divide each batch; where None, as `place` says.
        num_model: how many divide the parameters, at each place of the batch.
        scale: the loss scale of a fresh state; None where the loss is not scaled.

    Raises:
        ConfigError: if there are not so many devices, or they don't divide the batch.
    """

    format = JAX_FORMAT

    @lenient()
    def __init__(
        self,
        objective: Objective,
        optimizer: OptimizerConfig,
        seed: int,
        batch_size: int,
        num_devices: int | None = None,
        num_model: int = 1,
        scale: LossScale | None = None,
    ):
        self._objective, self._optimizer, self._seed = objective, optimizer, seed
        self._batch_size, self._scale = batch_size, scale
        default = place(batch_size, num_devices=num_devices, num_model=num_model)
        self._placements: dict[str | None, Placement] = {None: default}
        plans = [*make_plans(default.share, default.micro_batches, objective.remats)]
        if _has_cpu_besides():
            self._placements["cpu"] = on_cpu = place(batch_size, "cpu")
            plans += make_plans(on_cpu.share, on_cpu.micro_batches, objective.remats, "cpu")
        self.plans = tuple(plans)
        self.leads = jax.process_index() == 0

    @lenient()
    def start(self, plan: StepPlan, init: Path | None = None) -> TrainState:
        """Make a fresh state; its parameters are born where they belong."""
        make, shapes = self._fresh()
        params = None if init is None else load_params(init, self._objective)
        return jax.jit(make, out_shardings=self._shardings(shapes, plan))(jax.random.key(self._seed), params=params)

    @lenient()
    def load(self, checkpoint: Path, plan: StepPlan) -> TrainState:
        _, shapes = self._fresh()
        _, dropout_key = jax.random.split(jax.random.key(self._seed))  # of checkpoints that don't hold it
        return load_state(checkpoint, shapes.replace(key=dropout_key), self._shardings(shapes, plan))

    def open_checkpoints(self, workdir: Path, kind: str) -> CheckpointFolder:
        return CheckpointFolder(workdir, kind)

    @lenient(transfers=False)
    def step(self, state: TrainState, arrays: Arrays, plan: StepPlan) -> tuple[TrainState, Mapping[str, Any]]:
        placement = self._placements[plan.device]
        return train_step(
            state,
            placement.divide(arrays),
            micro_batches=plan.micro_batches,
            remat=plan.remat,
            mesh=placement.step_mesh,
        )

    def read(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return jax.device_get(metrics)

    @lenient()
    def predict(self, state: TrainState, arrays: Arrays, batch_size: int) -> Arrays:
        """Predict on the first of the devices, which takes a copy of the parameters where they are divided."""
        device = min(state.step.sharding.device_set, key=lambda device: device.id)
        params = jax.device_put(state.params, device)

        def predict(chunk: Arrays) -> Any:
            return predict_step(state.objective, params, jax.device_put(chunk, device))

        return predict_rows(predict, arrays, batch_size, jax.device_get)

    def ran_out(self, error: Exception) -> bool:
        return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)

    def describe(self, state: TrainState, plan: StepPlan) -> str:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
        devices = self._placements[plan.device].devices
        number = f"{len(devices)} x " if len(devices) > 1 else ""
        return f"{parameters:,} parameters on {number}{devices[0].device_kind}"

    def describe_plan(self, plan: StepPlan) -> str:
        placement = self._placements[plan.device]
        return plan.describe(self._batch_size, self._batch_size // placement.share)

    @lenient()
    def origin(self) -> dict[str, Any]:
        return {**provenance(), "devices": len(self._placements[None].devices)}

    def _fresh(self) -> tuple[Any, TrainState]:
        """What makes a fresh state of a key, and the state's shapes."""
        make = partial(make_state, self._objective, self._optimizer, batch_size=self._batch_size, scale=self._scale)
        return make, jax.eval_shape(make, jax.eval_shape(lambda: jax.random.key(self._seed)))

    def _shardings(self, shapes: TrainState, plan: StepPlan) -> TrainState:
        placement = self._placements[plan.device]
        everywhere = shardings_of(shapes, placement.mesh, self._objective.rules)
        return everywhere.replace(carry=jax.tree.map(lambda _: placement.batch_sharding, shapes.carry))


def _has_cpu_besides() -> bool:
    """Whether there is a CPU besides the default device; JAX_PLATFORMS may leave it out."""
    if jax.default_backend() == "cpu":
        return False
    try:
        return len(jax.local_devices(backend="cpu")) > 0
    except RuntimeError:
        return False
