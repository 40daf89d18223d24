"""Runs the twins on the same weights and inputs and measures the largest difference."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
from flax.traverse_util import flatten_dict

from parity.scenic import BOUND, Case, CaseCheck, build_machine, from_scenic, relative_difference, to_scenic
from parity.weights import to_jax, to_torch, twin_of


def random_params(module: Any, *inputs: Any, dtype: Any = np.float64, seed: int = 0, **options: Any) -> dict[str, Any]:
    """NumPy parameters of a JAX module in which no scale is one and no bias zero, so that each has its effect."""
    generator = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = leaf.shape[0] ** -0.5 if path[-1].key == "kernel" else 0.2
        return ((path[-1].key == "scale") + scale * generator.normal(size=leaf.shape)).astype(dtype)

    shapes = jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args, **options), *inputs)
    return jax.tree_util.tree_map_with_path(draw, dict(shapes.get("params", {})))


def as_dict(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a nested dict of arrays by name, as NumPy arrays."""
    return {name: np.asarray(leaf) for name, leaf in flatten_dict(dict(tree), sep="/").items()}


def run_jax(
    module: Any, params: Any, inputs: Sequence[np.ndarray], cotangents: Sequence[np.ndarray]
) -> tuple[list[np.ndarray], dict[str, Any], list[np.ndarray]]:
    """Outputs of a JAX module, and the gradients of sum(out * cotangent) by parameters and by inputs."""

    def apply(params: Any, *inputs: jax.Array) -> Any:
        return module.apply({"params": params}, *inputs)

    @jax.jit
    def run(params: Any, inputs: Any, cotangents: Any) -> Any:
        outputs, pull_back = jax.vjp(apply, params, *inputs)
        return outputs, pull_back(cotangents)

    with jax.default_matmul_precision("highest"):
        outputs, (grads, *input_grads) = run(params, tuple(inputs), tuple(cotangents))
    return [np.asarray(x) for x in outputs], grads, [np.asarray(x) for x in input_grads]


def run_torch(
    module: torch.nn.Module, inputs: Sequence[np.ndarray], cotangents: Sequence[np.ndarray], like: Any
) -> tuple[list[np.ndarray], dict[str, Any], list[np.ndarray]]:
    """As `run_jax`, of a PyTorch module that holds its weights; gradients under JAX's names, as of `like`."""
    tensors = [torch.tensor(x, requires_grad=True) for x in inputs]
    module.zero_grad()
    outputs = module(*tensors)
    torch.autograd.backward(outputs, [torch.tensor(cotangent) for cotangent in cotangents])
    return (
        [out.detach().numpy() for out in outputs],
        to_jax(gradients(module), like),
        [np.zeros_like(x) if t.grad is None else t.grad.numpy() for t, x in zip(tensors, inputs, strict=True)],
    )


def gradients(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The gradient of each parameter by name; zeros where nothing depends on it."""
    return {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for name, parameter in module.named_parameters()
    }


def difference(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> float:
    """`relative_difference` of arrays in order."""
    ours_by_name, theirs_by_name = ({str(i): x for i, x in enumerate(arrays)} for arrays in (ours, theirs))
    return relative_difference(ours_by_name, theirs_by_name)


def compare_twins(
    module: Any, params: Any, inputs: Sequence[np.ndarray], cotangents: Sequence[np.ndarray], *, num_tokens: int
) -> dict[str, float]:
    """Largest relative differences between a JAX machine or step and its twin.

    "outputs" (outputs and memory), "gradients" by every parameter, and "input_gradients".
    """
    twin = twin_of(module, width=inputs[-1].shape[-1], num_tokens=num_tokens)
    twin.load_state_dict(to_torch(params))
    outputs, grads, input_grads = run_jax(module, params, inputs, cotangents)
    twin_outputs, twin_grads, twin_input_grads = run_torch(twin, inputs, cotangents, params)
    found = {"outputs": difference(twin_outputs, outputs)}
    if grads:
        found["gradients"] = relative_difference(as_dict(twin_grads), as_dict(grads))
    return found | {"input_gradients": difference(twin_input_grads, input_grads)}


def compare_scenic(case: Case) -> CaseCheck:
    """As `parity.scenic.compare`, for the twin: its outputs and gradients against the original's."""
    machine = build_machine(case.meta)
    params = from_scenic(case.params, case.meta)
    inputs: Mapping[str, np.ndarray] = case.inputs
    twin = twin_of(machine, width=inputs["tokens"].shape[-1], num_tokens=inputs["tokens"].shape[-2])
    twin.load_state_dict(to_torch(params))
    given = ["memory", "tokens"] if "memory" in inputs else ["tokens"]
    tensors = [torch.tensor(inputs[name]) for name in given]
    results = twin(*tensors)
    outputs = dict(zip(("memory", "output") if "memory" in inputs else ("output",), results, strict=False))
    torch.autograd.backward(list(outputs.values()), [torch.tensor(inputs[f"cot_{name}"]) for name in outputs])
    grads = to_jax(gradients(twin), params)
    return CaseCheck(
        case.name,
        relative_difference({name: out.detach().numpy() for name, out in outputs.items()}, case.outputs),
        relative_difference(to_scenic(grads, case.meta), case.grads),
        BOUND,
    )
