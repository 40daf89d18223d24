"""Training in JAX, and its command.

python -m ttm_jax.train                                  # two CPU cores, a few minutes
python -m ttm_jax.train --config multiplication          # the checklist's sizes
python -m ttm_jax.train --workdir runs/quick --resume    # go on
"""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ttm_jax.answers import answer_pairs
from ttm_jax.checkpoint import FORMAT, CheckpointFolder, load_state
from ttm_jax.cli import Parser
from ttm_jax.config import Config, ConfigError
from ttm_jax.inference import Multiplier
from ttm_jax.loop import NonFiniteLoss, TrainingLoop
from ttm_jax.run_folder import provenance
from ttm_jax.state import TrainState, create_state, train_step
from ttm_jax.training_command import make_training_parser, resolve, run_training

__all__ = ["NonFiniteLoss", "Trainer", "main", "make_parser", "resolve"]


class Trainer(TrainingLoop[TrainState]):
    """The loop in JAX.

    Raises:
        ConfigError: also where the config asks for float64 and JAX is not allowed it.
    """

    checkpoint_format = FORMAT

    def __init__(
        self,
        config: Config,
        workdir: str | Path,
        resume: bool = False,
        stop_requested: Callable[[], bool] = lambda: False,
    ):
        if "float64" in (config.model.dtype, config.model.param_dtype) and not jax.config.read("jax_enable_x64"):
            raise ConfigError("model.dtype and model.param_dtype float64 need JAX_ENABLE_X64=1 in the environment")
        super().__init__(config, workdir, resume, stop_requested)

    def _create_state(self) -> TrainState:
        return create_state(self.config)

    def _load_state(self, checkpoint: Path) -> TrainState:
        return load_state(checkpoint, self.config)

    def _open_checkpoints(self, kind: str) -> CheckpointFolder:
        return CheckpointFolder(self.folder.path, kind)

    def _describe_origin(self) -> dict[str, Any]:
        return provenance()

    def describe_model(self) -> str:
        parameters = sum(leaf.size for leaf in jax.tree.leaves(self.state.params))
        return f"{parameters:,} parameters on {jax.devices()[0].device_kind}"

    def _train_step(self, arrays: dict[str, np.ndarray]) -> Mapping[str, Any]:
        self.state, metrics = train_step(self.state, arrays)
        return metrics

    def _answer(self, pairs_Px2: np.ndarray, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
        multiplier = Multiplier(self.state.model, {"params": self.state.params}, self.config, self.folder.path)
        return answer_pairs(multiplier, pairs_Px2, num_steps, self.config.train.eval_batch_size)


def make_parser() -> Parser:
    """The command line; every key of the config is a dotted flag."""
    return make_training_parser("ttm_jax")


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    return run_training(parser, parser.parse_args(argv), Trainer)


if __name__ == "__main__":
    sys.exit(main())
