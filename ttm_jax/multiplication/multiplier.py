"""A trained multiplier: load a checkpoint, multiply numbers."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.model import TTMModel, predict_tokens
from ttm_jax.multiplication.objective import make_objective
from ttm_jax.multiplication.scores import AnyMultiplier
from ttm_jax.multiplication.steps import check_fit
from ttm_jax.training.checkpoint import load_meta, load_params
from ttm_jax.training.checkpoint_files import CheckpointError, find_checkpoint
from ttm_jax.training.config import ConfigError
from ttm_jax.training.rows import predict_rows
from ttm_jax.training.settings import lenient
from ttm_jax.training.task import Arrays


@dataclass(frozen=True)
class Multiplier(AnyMultiplier):
    """A trained model with its parameters.

    Attributes:
        model: the linen module.
        variables: what `model.apply` takes.
        config: the config that it was trained with.
        path: the checkpoint that it came from.
    """

    model: TTMModel
    variables: dict
    config: Config
    path: Path

    @lenient()
    def predict(
        self, inputs_BxS: np.ndarray, batch_size: int = 512, num_steps: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `AnyMultiplier.predict`."""
        check_fit(self.config.model.schedule, inputs_BxS, num_steps)
        leaf = jax.tree.leaves(self.variables)[0]
        devices = list(leaf.devices()) if isinstance(leaf, jax.Array) else []
        device = devices[0] if len(devices) == 1 else None  # where the network is, or the default device

        def predict(chunk: Arrays) -> Any:
            return _predict(self.model, self.variables, jax.device_put(chunk["inputs"], device), num_steps)

        found = predict_rows(predict, {"inputs": inputs_BxS}, batch_size, jax.device_get)
        return found["predictions"], found["probabilities"]

    def without_memory(self) -> "Multiplier":
        """Return the same network with its memory wiped: each machine step starts from the memory of the first."""
        return replace(self, model=wipe_memory(self.model))


def wipe_memory(model: TTMModel) -> TTMModel:
    """Return the model with nothing written: every step starts from the memory that the first one starts from."""
    return model.clone(config=replace(model.config, write="none"))


def load(path: str | Path) -> Multiplier:
    """Load the multiplier of a checkpoint, or of a run folder (its best checkpoint, or else its latest).

    Raises:
        CheckpointError: naming the path and what is wrong with it.
    """
    path = find_checkpoint(path)
    config, _ = load_meta(path)
    try:
        objective = make_objective(config)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None
    return Multiplier(objective.model, {"params": load_params(path, objective)}, config, path)


@partial(jax.jit, static_argnums=(0, 3))
def _predict(model: TTMModel, variables: dict, inputs_BxS: jax.Array, num_steps: int | None) -> dict[str, jax.Array]:
    logits_BxTxV: Any = model.apply(variables, inputs_BxS, num_steps=num_steps)
    return {
        "predictions": predict_tokens(logits_BxTxV),
        "probabilities": jax.nn.softmax(logits_BxTxV, axis=-1).max(axis=-1),
    }
