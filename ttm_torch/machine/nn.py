"""`torch.nn` with the twin's `Embedding` and with `initializers`, as the checklist writes them."""

from torch.nn import *  # noqa: F403

from ttm_torch.machine import initializers
from ttm_torch.machine.layers import Embedding

__all__ = ["Embedding", "initializers"]
