"""The reusable part: the Token Turing Machine and what it is made of. Knows no task and no training."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=["flops"])
