"""Weights carried from one twin to the other and back, to the bit, by one rule.

Names are the same, joined by "." in PyTorch's state_dict and nested in JAX. Leaves map as

    JAX                                        PyTorch
    kernel [in, out]                           weight [out, in]
    kernel [D, H, K] (query, key, value)       weight [H K, D]
    kernel [H, K, D] (out of an attention)     weight [D, H K]
    bias [H, K]                                bias [H K]
    scale (LayerNorm)                          weight
    embedding [V, D] (a table)                 weight [V, D]
    anything else                              the same name and shape

PyTorch's shapes don't show the number of heads, so the way back takes a tree of JAX's shapes. Gradients follow the
same rule. A file is a safetensors file of the state_dict.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import ttm_torch

_SAME_BITS = {
    1: (np.int8, torch.int8),
    2: (np.int16, torch.int16),
    4: (np.int32, torch.int32),
    8: (np.int64, torch.int64),
}
_RENAMED = {"kernel": "weight", "scale": "weight"}


def to_torch(params: Mapping[str, Any]) -> dict[str, Tensor]:
    """Convert JAX parameters (or gradients) to a state_dict."""
    state = {}
    for path, leaf in flatten_dict(dict(params)).items():
        array = np.asarray(leaf)
        if path[-1] == "kernel":
            array = array.reshape(_matrix_shape(path, array.shape)).T
        elif path[-1] == "bias":
            array = array.reshape(-1)
        state[torch_name(path, array.ndim)] = _to_tensor(array)
    return state


def to_jax(state: Mapping[str, Tensor], like: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a state_dict to JAX parameters, as NumPy arrays.

    Args:
        state: tensors under PyTorch's names.
        like: a tree of the wanted names and shapes: parameters, or `jax.eval_shape(model.init, ...)["params"]`.

    Raises:
        ValueError: naming the parameter that is missing, of another shape, or not in `like`.
    """
    state, params = dict(state), {}
    wanted: dict[tuple[str, ...], Any] = flatten_dict(dict(like))
    for path, leaf in wanted.items():
        name = torch_name(path, len(leaf.shape))
        if name not in state:
            raise ValueError(f"parameter {name} is missing; it is {'/'.join(path)} of shape {leaf.shape} in JAX")
        array = to_numpy(state.pop(name))
        expected = leaf.shape
        if path[-1] == "kernel":
            array, expected = array.T, _matrix_shape(path, leaf.shape)
        elif path[-1] == "bias":
            expected = (int(np.prod(leaf.shape)),)
        if array.shape != expected:
            raise ValueError(f"parameter {name} has {array.size} numbers {array.shape}, must fit {leaf.shape} in JAX")
        params[path] = np.ascontiguousarray(array).reshape(leaf.shape)
    if state:
        raise ValueError(f"parameter {min(state)} is unknown: JAX has none to hold it")
    return unflatten_dict(params)


def torch_name(path: tuple[str, ...], ndim: int) -> str:
    """Return the state_dict's name of the leaf at `path` with `ndim` axes."""
    leaf = "weight" if path[-1] == "embedding" and ndim == 2 else _RENAMED.get(path[-1], path[-1])
    return ".".join((*path[:-1], leaf))


def save(path: str | Path, state: Mapping[str, Tensor]) -> None:
    """Write a state_dict as a safetensors file."""
    save_file({name: tensor.detach().contiguous() for name, tensor in state.items()}, path)


def load(path: str | Path) -> dict[str, Tensor]:
    """Read the state_dict of a safetensors file.

    Raises:
        ValueError: if the file is no safetensors file or is damaged.
        OSError: if it cannot be read.
    """
    try:
        return load_file(path)
    except OSError:
        raise
    except Exception as error:  # safetensors' own type is a bare Exception
        raise ValueError(f"{path}: damaged, or not a safetensors file: {error}") from None


def twin_of(module: Any, *, width: int, num_tokens: int) -> nn.Module:
    """Make the PyTorch twin of a JAX machine or step, with fresh weights, in `module.param_dtype`."""
    cls = getattr(ttm_torch, type(module).__name__)
    left_out = {"parent", "name", "dtype", "param_dtype", "remat"}
    options = {name: getattr(module, name) for name in type(module).__dataclass_fields__ if name not in left_out}
    twin = cls(width=width, num_tokens=num_tokens, **options)
    return twin.to(getattr(torch, np.dtype(module.param_dtype).name))


def _matrix_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a kernel's shape as a matrix [inputs, outputs]; an attention's output kernel is [H, K, D]."""
    num_inputs = len(shape) - 1 if path[-2:-1] == ("out",) else 1
    return int(np.prod(shape[:num_inputs])), int(np.prod(shape[num_inputs:]))


def _to_tensor(array: np.ndarray) -> Tensor:
    """Copy `array` to the bit, by way of integers: PyTorch does not take NumPy's bfloat16."""
    numpy_bits, _ = _SAME_BITS[array.itemsize]
    bits = torch.from_numpy(np.array(array, order="C", copy=True).view(numpy_bits))
    return bits.view(getattr(torch, array.dtype.name))


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Copy `tensor` to the bit, from any device."""
    _, torch_bits = _SAME_BITS[tensor.element_size()]
    bits = tensor.detach().cpu().contiguous().view(torch_bits).numpy()
    return bits.view(jax.numpy.dtype(str(tensor.dtype).removeprefix("torch."))).copy()
