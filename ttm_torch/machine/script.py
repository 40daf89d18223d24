"""TorchScript for the few functions that the checklist wants compiled by it."""

import warnings
from collections.abc import Callable
from functools import update_wrapper
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def script(function: Callable[P, R]) -> Callable[P, R]:
    """`@torch.jit.script`, which keeps the function's name, signature and docstring.

    TorchScript is no longer developed, and `torch.compile` takes these functions in as if they were plain Python. Only
    those are scripted that lose nothing by it: of what runs at every step, `erase_and_add` and `gelu` were slower
    scripted. PyTorch's deprecation warning is for who writes `@script`, not for who imports this package.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(function)
    return cast(Callable[P, R], update_wrapper(scripted, function))
