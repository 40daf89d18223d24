"""What the commands that run both twins need besides JAX."""

import importlib.util

_PACKAGES = {"torch": "PyTorch", "safetensors": "safetensors"}


def missing_package() -> str | None:
    """Return what to say of the first package that is not installed, or None."""
    for module, name in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            return f"{name} is not installed; pip install 'token-turing-machine[torch]' installs it"
    return None


def missing_device(device: str) -> str | None:
    """Return what to say where PyTorch is missing or has no such device, or None where it can compute there."""
    if missing := missing_package():
        return missing
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        return "--device cuda: PyTorch sees no CUDA device; --device cpu does without"
    return None
