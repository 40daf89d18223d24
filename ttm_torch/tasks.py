"""What the tasks of `ttm_jax.tasks` have trained in PyTorch."""

from pathlib import Path

import torch

from ttm_jax.tasks import load_trained
from ttm_torch.multiplication.multiplier import Multiplier


def load(name: str | Path, device: torch.device | str = "cpu") -> Multiplier:
    """Load what a checkpoint of the twin holds, onto a device; see `ttm_jax.tasks.load`.

    Raises:
        CheckpointError: naming the path and what is wrong with it.
    """
    return load_trained("ttm_torch", name, device=device)
