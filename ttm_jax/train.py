"""Training in JAX, and its command.

python -m ttm_jax.train                                  # two CPU cores, a few minutes
python -m ttm_jax.train --config multiplication          # the checklist's sizes
python -m ttm_jax.train --workdir runs/quick --resume    # go on
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import numpy as np

from ttm_jax.allocator import keep_freed_memory
from ttm_jax.answers import answer_pairs
from ttm_jax.checkpoint import CheckpointFolder, load_state
from ttm_jax.checkpoint_files import JAX_FORMAT
from ttm_jax.cli import Parser
from ttm_jax.config import Config, RematName
from ttm_jax.fallback import StepPlan
from ttm_jax.inference import Multiplier
from ttm_jax.loop import NonFiniteLoss, TrainingLoop
from ttm_jax.run_folder import provenance
from ttm_jax.state import TrainState, check_precision, create_state, random_keys, train_step
from ttm_jax.training_command import make_training_parser, resolve, run_training

__all__ = ["NonFiniteLoss", "Trainer", "main", "make_parser", "resolve"]


class Trainer(TrainingLoop[TrainState]):
    """The loop in JAX.

    Raises:
        ConfigError: also where the config asks for float64 and JAX is not allowed it.
    """

    checkpoint_format = JAX_FORMAT

    def __init__(
        self,
        config: Config,
        workdir: str | Path,
        resume: bool = False,
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        check_precision(config)
        super().__init__(config, workdir, resume, stop_requested)

    def _create_state(self, plan: StepPlan) -> TrainState:
        return self._put(create_state(self.config), plan)

    def _load_state(self, checkpoint: Path, plan: StepPlan) -> TrainState:
        return self._put(load_state(checkpoint, self.config), plan)

    def _open_checkpoints(self, kind: str) -> CheckpointFolder:
        return CheckpointFolder(self.folder.path, kind)

    def _describe_origin(self) -> dict[str, Any]:
        return provenance()

    def describe_model(self) -> str:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        (device,) = self.state.step.devices()
        return f"{parameters:,} parameters on {device.device_kind}"

    def _train_step(self, arrays: dict[str, np.ndarray], plan: StepPlan) -> Mapping[str, Any]:
        batch = self._put(arrays, plan)
        self.state, metrics = train_step(self.state, batch, micro_batches=plan.micro_batches, remat=plan.remat)
        return metrics

    def _fetch(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        return jax.device_get(metrics)

    def _answer(self, pairs_Px2: np.ndarray, num_steps: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        multiplier = Multiplier(self.state.model, {"params": self.state.params}, self.config, self.folder.path)
        return answer_pairs(multiplier, pairs_Px2, num_steps, batch_size)

    def _is_out_of_memory(self, error: Exception) -> bool:
        return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in str(error)

    def _next_plan(self, plan: StepPlan) -> StepPlan | None:
        remats = get_args(RematName)
        stronger = remats[remats.index(self.config.model.remat) + 1 :]
        return plan.next(self.config.data.batch_size, stronger, _has_cpu_besides())

    def _copy_state(self) -> Mapping[str, Any] | None:
        state = self.state
        changing = {"step": state.step, "params": state.params, "opt_state": state.opt_state}
        if any(leaf.is_deleted() for leaf in jax.tree.leaves(changing)):
            return None
        return jax.tree.map(np.array, jax.device_get(changing))  # what device_get gives may be the device's own memory

    def _put_state(self, copy: Mapping[str, Any], plan: StepPlan) -> TrainState:
        return self._put(self.state.replace(**copy, key=random_keys(self.config)[1]), plan)

    def _put(self, tree: Any, plan: StepPlan) -> Any:
        """Arrays on the device of the plan; on the default device uncommitted, as a fresh state is."""
        return jax.device_put(tree, None if plan.device is None else jax.local_devices(backend=plan.device)[0])


def _has_cpu_besides() -> bool:
    """Whether there is a CPU besides the default device; JAX_PLATFORMS may leave it out."""
    if jax.default_backend() == "cpu":
        return False
    try:
        return len(jax.local_devices(backend="cpu")) > 0
    except RuntimeError:
        return False


def make_parser() -> Parser:
    """The command line; every key of the config is a dotted flag."""
    return make_training_parser("ttm_jax")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    keep_freed_memory()
    return run_training(parser, args, Trainer)


if __name__ == "__main__":
    sys.exit(main())
