"""Where a result of PyTorch comes from; the folder of a run is that of `ttm_jax.training.run_folder`."""

from typing import Any

import torch

from ttm_jax.training.run_folder import describe_origin

PACKAGES = ("torch", "numpy", "safetensors")


def provenance(device: torch.device) -> dict[str, Any]:
    """Tell where a result comes from: versions, commit, machine, date, command."""
    return describe_origin(PACKAGES, device_name(device), device.type)


def device_name(device: torch.device) -> str:
    """Name the model of a GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
