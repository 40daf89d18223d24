"""What the commands that run both twins need beside JAX."""

import importlib.util

_PACKAGES = {"torch": "PyTorch", "safetensors": "safetensors"}


def missing_package() -> str | None:
    """What to say of the first package that is not installed; None where all are."""
    for module, name in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            return f"{name} is not installed; pip install 'token-turing-machine[torch]' installs it"
    return None
