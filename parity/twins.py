"""Runs of the twins on the same weights and inputs: outputs, and gradients by every parameter and input."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn

from parity.compare import Row, compared
from parity.fast_jit import fast_jit
from parity.weights import to_jax, to_numpy, to_torch

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Results:
    """Outputs by name; where wanted, the gradients of sum(output * cotangent) by parameters and by inputs."""

    outputs: Arrays
    gradients: Arrays = field(default_factory=dict)
    input_gradients: Arrays = field(default_factory=dict)
    cotangents: Arrays = field(default_factory=dict)


def draw(seed: int, *shape: int) -> np.ndarray:
    """Draw standard normal numbers in float64."""
    return np.random.default_rng(seed).normal(size=shape)


def cast(arrays: Sequence[np.ndarray], dtype: Any) -> list[np.ndarray]:
    """Cast the arrays that hold floats to `dtype`; leave the others as they are."""
    return [x.astype(dtype) if np.issubdtype(x.dtype, np.floating) else x for x in arrays]


def tensors_of(arrays: Iterable[np.ndarray], device: str, requires_grad: bool = False) -> list[torch.Tensor]:
    """Copy arrays to tensors; those that hold floats may require gradients."""
    return [
        torch.tensor(x, device=device, requires_grad=requires_grad and np.issubdtype(x.dtype, np.floating))
        for x in arrays
    ]


def cast_params(params: Any, dtype: Any) -> Any:
    """Cast a tree of NumPy arrays to `dtype`."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), params)


def random_params(module: Any, *inputs: Any, dtype: Any = np.float64, seed: int = 0, **options: Any) -> dict[str, Any]:
    """Draw NumPy parameters of a JAX module. No scale is one and no bias zero, so that each has its effect."""
    generator = np.random.default_rng(seed)

    def leaf(path: Any, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = shape.shape[0] ** -0.5 if path[-1].key == "kernel" else 0.2
        return ((path[-1].key == "scale") + scale * generator.normal(size=shape.shape)).astype(dtype)

    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args, **options), *inputs)
    return jax.tree_util.tree_map_with_path(leaf, dict(shapes.get("params", {})))


def as_arrays(tree: Any) -> Arrays:
    """Return the leaves of a nested dict by name, as NumPy arrays."""
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(dict(tree), sep="/").items()}


def load_weights(twin: nn.Module, params: Mapping[str, Any], dtype: Any, device: str) -> None:
    """Give the twin JAX's parameters, and move it to the device."""
    twin.to(getattr(torch, jnp.dtype(dtype).name))
    twin.load_state_dict(to_torch(params))
    twin.to(device)


def run_jax(
    apply: Callable[..., Any],
    params: Any,
    inputs: Sequence[np.ndarray],
    names: Sequence[str] = ("output",),
    *,
    gradients: bool = True,
) -> Results:
    """Compute the results of `apply(params, *inputs)`, whose outputs are called `names`."""
    is_float = [np.issubdtype(x.dtype, np.floating) for x in inputs]

    def run(params: Any, inputs: Any) -> Any:
        def call(params: Any, floats: Any) -> Any:
            left = iter(floats)
            outputs = apply(params, *(next(left) if float_ else x for x, float_ in zip(inputs, is_float, strict=True)))
            return outputs if isinstance(outputs, tuple) else (outputs,)

        floats = [x for x, float_ in zip(inputs, is_float, strict=True) if float_]
        if not gradients:
            return call(params, floats), ({}, []), ()
        outputs, pull_back = jax.vjp(call, params, floats)
        cotangents = tuple(jnp.asarray(draw(100 + i, *out.shape), out.dtype) for i, out in enumerate(outputs))
        return outputs, pull_back(cotangents), cotangents

    with jax.default_matmul_precision("highest"):
        outputs, (grads, input_grads), cotangents = jax.device_get(fast_jit(run)(params, tuple(inputs)))
    return Results(
        dict(zip(names, outputs, strict=True)),
        as_arrays(grads),
        {str(i): grad for i, grad in enumerate(input_grads)},
        dict(zip(names, cotangents, strict=False)),
    )


def run_torch(
    function: Callable[..., Any],
    twin: nn.Module | None,
    params: Any,
    inputs: Sequence[np.ndarray],
    theirs: Results,
    device: str,
) -> Results:
    """Run a PyTorch function that uses the weights of `twin`, as `run_jax` does; gradients where `theirs` has them."""
    with torch.set_grad_enabled(bool(theirs.cotangents)):
        tensors = tensors_of(inputs, device, requires_grad=bool(theirs.cotangents))
        outputs = function(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        named = {name: to_numpy(out) for name, out in zip(theirs.outputs, outputs, strict=True)}
        if not theirs.cotangents:
            return Results(named)
        torch.autograd.backward(outputs, tensors_of(theirs.cotangents.values(), device))
    floats = [tensor for tensor in tensors if tensor.requires_grad]
    return Results(
        named,
        {} if twin is None else gradients_of(twin, params),
        {str(i): to_numpy(_gradient(tensor)) for i, tensor in enumerate(floats)},
        theirs.cotangents,
    )


def compare_results(label: str, bound: float, ours: Results, theirs: Results, **more: tuple[Any, Any]) -> Row:
    """Make one row of all that JAX has computed, and of `more` kinds of arrays."""
    kinds = more | {
        kind: (getattr(ours, kind), getattr(theirs, kind))
        for kind in ("outputs", "gradients", "input_gradients")
        if getattr(theirs, kind)
    }
    return compared(label, bound, **kinds)


def gradients_of(module: nn.Module, like: Any) -> Arrays:
    """Return the gradient by each parameter under JAX's names and shapes, which are those of `like`."""
    return as_arrays(to_jax({name: _gradient(parameter) for name, parameter in module.named_parameters()}, like))


def _gradient(tensor: torch.Tensor) -> torch.Tensor:
    """Return the gradient, or zeros where nothing depends on the tensor."""
    return torch.zeros_like(tensor) if tensor.grad is None else tensor.grad
