"""The device that the commands compute on, and where a result of it comes from."""

import argparse
from typing import Any

import torch

from ttm_jax.training.config import ConfigError
from ttm_jax.training.run_folder import describe_origin

DEVICES = ("cpu", "cuda")
PACKAGES = ("torch", "numpy", "safetensors")


def find_device(name: str | None = None) -> torch.device:
    """Find the device of that name; where None, the GPU if there is one.

    Raises:
        ConfigError: for "cuda" where PyTorch finds no GPU.
    """
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise ConfigError("--device cuda: PyTorch finds no CUDA device here; --device cpu computes without one")
    return torch.device(name or ("cuda" if has_cuda else "cpu"))


def add_device_flag(parser: argparse.ArgumentParser) -> None:
    """Add the flag --device, for `find_device`."""
    parser.add_argument("--device", choices=DEVICES, help="where to compute (default: cuda where there is a GPU)")


def provenance(device: torch.device) -> dict[str, Any]:
    """Tell where a result comes from: versions, commit, machine, date, command."""
    return describe_origin(PACKAGES, device_name(device), device.type)


def device_name(device: torch.device) -> str:
    """Name the model of a GPU, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
