"""Names and shapes of the weights on both sides; that they go both ways to the bit is in `test_cases`."""

import jax
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict

from parity.twins import random_params
from parity.weights import load, save, to_jax, to_torch, twin_of
from ttm_jax.machine.machine import TokenTuringMachine

MACHINES = [
    TokenTuringMachine(memory_size=5, process_size=4, num_layers=2, mlp_dim=7, num_heads=2, **modes)
    for modes in (
        dict(read="query", write="query"),
        dict(write="erase_add", processing="mixer"),
        dict(read="pooling", write="none", processing="mlp"),
    )
]
TOKENS = np.zeros((2, 1, 3, 8), np.float32)


def bits(tree):
    return {
        path: (leaf.shape, leaf.dtype.name, np.asarray(leaf).tobytes())
        for path, leaf in flatten_dict(dict(tree)).items()
    }


@pytest.mark.parametrize("machine", MACHINES)
def test_the_names_and_shapes_are_those_of_the_twin(machine):
    shapes = jax.eval_shape(machine.init, jax.random.key(0), TOKENS)["params"]
    twin = twin_of(machine, width=8, num_tokens=3)
    params = to_jax(twin.state_dict(), shapes)
    assert {path: leaf.shape for path, leaf in flatten_dict(params).items()} == {
        path: leaf.shape for path, leaf in flatten_dict(shapes).items()
    }
    state = to_torch(params)
    assert state.keys() == twin.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in twin.state_dict().items())


def test_the_state_is_a_copy():
    params = random_params(MACHINES[0], TOKENS, dtype=np.float32)
    before = bits(params)
    for tensor in to_torch(params).values():
        tensor.zero_()
    assert bits(params) == before


def test_what_does_not_fit_is_named():
    params = random_params(MACHINES[0], TOKENS, dtype=np.float32)
    state = to_torch(params)
    name = "step.read.summarizer.attention.query.weight"
    with pytest.raises(
        ValueError, match=f"parameter {name} is missing; it is step/read/summarizer/attention/query/ker"
    ):
        to_jax({key: tensor for key, tensor in state.items() if key != name}, params)
    with pytest.raises(ValueError, match=r"parameter step.extra is unknown"):
        to_jax(state | {"step.extra": torch.zeros(1)}, params)
    with pytest.raises(ValueError, match=rf"parameter {name} has 16 numbers \(2, 8\), must fit \(8, 2, 4\) in JAX"):
        to_jax(state | {name: torch.zeros(8, 2)}, params)
    wrong = flatten_dict(params)
    wrong[("initial_memory",)] = np.zeros((1, 4, 8), np.float32)
    with pytest.raises(ValueError, match="parameter initial_memory has 40 numbers"):
        to_jax(state, unflatten_dict(wrong))


def test_a_damaged_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save(path, to_torch(random_params(MACHINES[0], TOKENS, dtype=np.float32)))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged, or not a safetensors file"):
        load(path)
    with pytest.raises(OSError, match="No such file"):
        load(tmp_path / "missing.safetensors")
