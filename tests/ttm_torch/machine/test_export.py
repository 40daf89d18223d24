"""Export with a free batch, in every mode: `torch.export` with a named dimension, and ONNX."""

from itertools import product

import pytest
import torch
from torch.export import Dim

import ttm_torch
from ttm_torch.machine.memory import READS, WRITES
from ttm_torch.machine.processing import PROCESSING_UNITS

B, T, N, D, M = 2, 2, 3, 8, 5
SIZES = dict(width=D, num_tokens=N, memory_size=M, process_size=4, num_layers=1, mlp_dim=8, num_heads=2)
BATCH = {0: Dim("batch")}


@pytest.fixture
def inputs():
    """`inputs(size)`: tokens, and more by name."""

    def draw(size):
        generator = torch.Generator().manual_seed(0)
        tokens, memory = (torch.randn(size, *shape, generator=generator) for shape in ((T, N, D), (M, D)))
        return tokens, dict(memory=memory, valid_BxTxN=torch.rand(size, T, N, generator=generator) > 0.3)

    return draw


def check(machine, inputs):
    tokens, more = inputs(B)
    shapes = dict.fromkeys(("tokens_BxTxNxD", *more), BATCH)
    program = torch.export.export(machine, (tokens,), more, dynamic_shapes=shapes).module()
    for size in (5, 1):
        tokens, more = inputs(size)
        torch.testing.assert_close(program(tokens, **more), machine(tokens, **more))


def modes():
    """Each read and write; those that have both in another place are slow."""
    for number, (read, write) in enumerate(product(READS, WRITES)):
        fast = READS.index(read) == WRITES.index(write) % 3
        unit = PROCESSING_UNITS[number // 2 % 3]
        yield pytest.param(read, write, unit, marks=[] if fast else [pytest.mark.slow])


@pytest.mark.parametrize(("read", "write", "processing"), list(modes()))
def test_every_mode_runs_at_other_batch_sizes(read, write, processing, inputs):
    check(ttm_torch.TokenTuringMachine(read=read, write=write, processing=processing, **SIZES), inputs)


def test_the_simple_machine_runs_at_other_batch_sizes(inputs):
    check(ttm_torch.SimpleTokenTuringMachine(gate="fixed", **SIZES), inputs)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # PyTorch's, about itself
@pytest.mark.parametrize(("read", "write"), [("mlp", "mlp"), ("query", "erase_add"), ("pooling", "pooling")])
def test_onnx(read, write, inputs, tmp_path):
    import onnxruntime

    machine = ttm_torch.TokenTuringMachine(read=read, write=write, **SIZES).eval()
    path = tmp_path / "machine.onnx"
    torch.onnx.export(machine, inputs(B)[:1], path, dynamic_shapes=(BATCH,), dynamo=True)
    session = onnxruntime.InferenceSession(path)
    for size in (5, 1):
        tokens, _ = inputs(size)
        found = session.run(None, {session.get_inputs()[0].name: tokens.numpy()})
        for ours, theirs in zip(found, machine(tokens), strict=True):
            torch.testing.assert_close(torch.from_numpy(ours), theirs.detach(), rtol=1e-4, atol=1e-5)
