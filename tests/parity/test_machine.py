"""The machine of both twins: outputs, memory and all gradients, in every mode; streaming; the original's cases."""

from itertools import product
from pathlib import Path

import jax
import numpy as np
import pytest
import torch

import ttm_torch
from parity.compare import compare_scenic, compare_twins, difference, random_params
from parity.scenic import load_case
from parity.weights import to_torch, twin_of
from ttm_jax.machine import _SCENIC_MODES, SimpleTokenTuringMachine, TokenTuringMachine
from ttm_jax.memory import READS, WRITES
from ttm_jax.processing import PROCESSING_UNITS

FLOAT64_BOUND, FLOAT32_BOUND = 1e-10, 1e-5
B, T, N, D = 2, 2, 3, 8
SIZES = dict(memory_size=5, process_size=4, num_layers=1, mlp_dim=7, num_heads=2)
SCENIC = sorted((Path(__file__).parents[1] / "data" / "scenic").glob("*.npz"))

MACHINES = [
    *(
        TokenTuringMachine(read=read, write=write, processing=processing, **SIZES)
        for read, write, processing in product(READS, WRITES, PROCESSING_UNITS)
    ),
    *(
        TokenTuringMachine(read=read, write=write, processing=processing, compat="scenic", **SIZES)
        for (read, write), processing in product(_SCENIC_MODES, PROCESSING_UNITS)
    ),
    *(
        SimpleTokenTuringMachine(processing=processing, compat=compat, **SIZES)
        for processing, compat in product(PROCESSING_UNITS, (None, "scenic"))
    ),
    TokenTuringMachine(positions=False, learned_memory=False, **(SIZES | dict(num_layers=2))),
    TokenTuringMachine(write="erase_add", positions=False, processing="mixer", **(SIZES | dict(num_layers=2))),
]

# Each way of reading, of writing, of processing and each compat once.
STREAMED = [
    TokenTuringMachine(**SIZES),
    TokenTuringMachine(read="query", write="query", processing="mixer", compat="scenic", **SIZES),
    TokenTuringMachine(write="erase_add", processing="mlp", compat="scenic", **SIZES),
    TokenTuringMachine(read="pooling", write="erase_add", processing="mixer", **SIZES),
    TokenTuringMachine(read="query", write="concat", processing="mlp", **SIZES),
    TokenTuringMachine(read="pooling", write="none", processing="mlp", **SIZES),
    SimpleTokenTuringMachine(processing="mixer", **SIZES),
]


def name_of(machine):
    modes = [getattr(machine, field, None) for field in ("read", "write", "processing", "compat")]
    return "-".join(["simple"] * (modes[0] is None) + [mode for mode in modes if mode])


def draw(seed, *shape, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def arrays(dtype):
    """Tokens, memory and cotangents."""
    M, R = SIZES["memory_size"], SIZES["process_size"]
    inputs = [draw(0, B, T, N, D, dtype=dtype), draw(1, B, M, D, dtype=dtype)]
    return inputs, [draw(2, B, T, R, D, dtype=dtype), draw(3, B, M, D, dtype=dtype)]


@pytest.fixture
def float64():
    """Without compiling: the cases share their operations, not their programs."""
    with jax.enable_x64(True), jax.disable_jit():
        yield


@pytest.mark.parametrize("machine", MACHINES, ids=name_of)
def test_outputs_memory_and_gradients_in_float64(machine, float64):
    """From the initial memory, so its gradient is among them."""
    machine = machine.clone(param_dtype=np.float64)
    inputs, cotangents = arrays(np.float64)
    params = random_params(machine, inputs[0])
    found = compare_twins(machine, params, inputs[:1], cotangents, num_tokens=N)
    assert max(found.values()) <= FLOAT64_BOUND, found


@pytest.mark.parametrize("machine", STREAMED, ids=name_of)
def test_streaming_in_float64(machine, float64):
    """From a memory that is given; and in PyTorch two chunks are the whole."""
    machine = machine.clone(param_dtype=np.float64)
    inputs, cotangents = arrays(np.float64)
    params = random_params(machine, inputs[0])
    found = compare_twins(machine, params, inputs, cotangents, num_tokens=N)
    assert max(found.values()) <= FLOAT64_BOUND, found

    twin = twin_of(machine, width=D, num_tokens=N)
    twin.load_state_dict(to_torch(params))
    tokens = torch.tensor(inputs[0])
    outputs, memory = twin(tokens)
    first, carried = twin(tokens[:, :1])
    second, last = twin(tokens[:, 1:], memory=carried)
    torch.testing.assert_close(torch.cat([first, second], dim=1), outputs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(last, memory, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("machine", STREAMED, ids=name_of)
def test_forward_in_float32(machine):
    inputs, _ = arrays(np.float32)
    params = random_params(machine, inputs[0], dtype=np.float32)
    twin = twin_of(machine, width=D, num_tokens=N)
    twin.load_state_dict(to_torch(params))
    with torch.no_grad():
        ours = [x.numpy() for x in twin(*map(torch.tensor, inputs))]
    theirs = [np.asarray(x) for x in jax.jit(machine.apply)({"params": params}, *inputs)]
    assert difference(ours, theirs) <= FLOAT32_BOUND


@pytest.mark.parametrize("path", SCENIC, ids=lambda path: path.stem)
def test_the_original_s_cases(path):
    check = compare_scenic(load_case(path))
    assert check.ok, check


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(read="erase_add"), "read must be one of 'mlp', 'query', 'pooling'; got 'erase_add'"),
        (dict(write="NONE"), "write must be one of"),
        (dict(processing="rnn"), "processing must be one of"),
        (dict(compat=True), "compat must be one of"),
        (dict(memory_size=0), "memory_size must be a positive int, got 0"),
        (dict(num_tokens=2.0), "num_tokens must be a positive int, got 2.0"),
        (dict(dropout_rate=1.0), r"dropout_rate must be in \[0, 1\), got 1.0"),
        (dict(num_heads=3), "num_heads must divide the width, got 3 heads for width 8"),
        (dict(compat="scenic", read="pooling"), "compat='scenic' has the read/write modes"),
    ],
)
def test_a_wrong_option_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        ttm_torch.TokenTuringMachine(**(dict(width=D, num_tokens=N) | options))


@pytest.mark.parametrize(
    ("tokens", "memory", "message"),
    [
        ((2, 3, 8), None, r"tokens must be \[B, T, N, D\], got shape"),
        ((2, 0, 3, 8), None, "tokens must have no empty axis"),
        ((2, 1, 3, 8), (1, 96, 8), r"memory must be \(2, 96, 8\), got \(1, 96, 8\)"),
    ],
)
def test_a_wrong_shape_is_named(tokens, memory, message):
    machine = ttm_torch.TokenTuringMachine(width=D, num_tokens=N, num_layers=1)
    with pytest.raises(ValueError, match=message):
        machine(torch.zeros(tokens), None if memory is None else torch.zeros(memory))
