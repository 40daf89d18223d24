"""Using a trained multiplier: load a checkpoint, multiply numbers."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.scores import AnyMultiplier
from ttm_jax.multiplication.steps import check_fit
from ttm_jax.training.checkpoint_files import find_checkpoint
from ttm_torch.multiplication.model import TTMModel, predict_tokens
from ttm_torch.multiplication.objective import create_model
from ttm_torch.training.checkpoint import load_meta, load_model
from ttm_torch.training.step import evaluation_mode


@dataclass(frozen=True)
class Multiplier(AnyMultiplier):
    """A trained model, which computes on the device of its weights.

    Attributes:
        model: the module.
        config: the config that it was trained with.
        path: the checkpoint that it came from.
    """

    model: TTMModel
    config: Config
    path: Path

    def predict(
        self, inputs_BxS: np.ndarray, batch_size: int = 512, num_steps: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predict as `AnyMultiplier.predict` says."""
        check_fit(self.config.model.schedule, inputs_BxS, num_steps)
        device = next(self.model.parameters()).device
        predictions, probabilities = [], []
        with evaluation_mode(self.model):
            for chunk_BxS in torch.as_tensor(inputs_BxS, device=device).split(batch_size):
                logits_BxTxV = self.model(chunk_BxS, num_steps)
                predictions.append(predict_tokens(logits_BxTxV))
                probabilities.append(logits_BxTxV.softmax(dim=-1).amax(dim=-1))
        return torch.cat(predictions).cpu().numpy(), torch.cat(probabilities).cpu().numpy()


def load(path: str | Path, device: torch.device | str = "cpu") -> Multiplier:
    """Load the multiplier of a checkpoint, or of a run folder: its best checkpoint, or else its latest.

    Raises:
        CheckpointError: naming the path and what is wrong with it.
    """
    path = find_checkpoint(path)
    config, _ = load_meta(path)
    return Multiplier(load_model(path, create_model(config)).to(device), config, path)
