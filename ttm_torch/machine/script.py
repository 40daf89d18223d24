"""TorchScript for the few functions that the checklist wants compiled by it."""

import warnings
from collections.abc import Callable
from functools import update_wrapper
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
R = TypeVar("R")


def script(function: Callable[P, R]) -> Callable[P, R]:
    """Compile a function by `torch.jit.script`; keep its name, signature and docstring.

    TorchScript is no longer developed. `torch.compile` takes these functions in as if they were plain Python. What
    the machine itself calls is not scripted: activation checkpointing fails in TorchScript. PyTorch's deprecation
    warning is for those who write `@script`, not for those who import this package.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        scripted = torch.jit.script(function)
    return cast(Callable[P, R], update_wrapper(scripted, function))
