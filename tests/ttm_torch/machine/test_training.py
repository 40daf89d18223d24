"""What a training of one's own does with the machine: narrow types, activation checkpointing, several processes."""

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import ttm_torch

B, T, N, D, M, R = 2, 3, 5, 12, 6, 4
SIZES = dict(width=D, num_tokens=N, memory_size=M, process_size=R, num_layers=1, mlp_dim=8, num_heads=3)
# Every read, write and processing unit at least once.
CASES = {
    "mlp-mlp-transformer": {},
    "query-query-mixer": dict(read="query", write="query", processing="mixer"),
    "pooling-pooling-mlp": dict(read="pooling", write="pooling", processing="mlp"),
    "mlp-erase_add-mixer": dict(write="erase_add", processing="mixer"),
    "query-concat-mlp": dict(read="query", write="concat", processing="mlp"),
    "mlp-none-mlp": dict(write="none", processing="mlp"),
    "query-mlp-mlp-gate": dict(read="query", processing="mlp", gate="fixed"),
    "simple-transformer": None,
}


@pytest.fixture(params=CASES)
def machine(request):
    options = CASES[request.param]
    torch.manual_seed(0)
    if options is None:
        return ttm_torch.SimpleTokenTuringMachine(**SIZES)
    return ttm_torch.TokenTuringMachine(**SIZES, **options)


def tokens_of(*shape):
    return torch.randn(*shape, N, D, generator=torch.Generator().manual_seed(1))


def gradients(machine, outputs, memory):
    machine.zero_grad()
    (outputs.float().square().sum() + memory.sum()).backward()
    return [parameter.grad for parameter in machine.parameters()]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_in_narrow_types_memory_stays_in_float32(machine, dtype, tolerance):
    tokens = tokens_of(B, T)
    with torch.no_grad():
        expected = machine(tokens)
    outputs, memory = machine.to(dtype)(tokens.to(dtype))
    assert (outputs.dtype, memory.dtype) == (dtype, torch.float32)
    for found, wanted in zip((outputs, memory), expected, strict=True):
        assert (found.float() - wanted).abs().max() < tolerance * wanted.abs().max()
    assert all(gradient.isfinite().all() for gradient in gradients(machine, outputs, memory))
    again, _ = machine(tokens.to(dtype), memory)
    assert again.dtype == dtype


def test_activation_checkpointing_gives_the_same_gradients(machine):
    """PyTorch ends the second forward pass by an exception, in the last operation that it needs."""
    tokens = tokens_of(B, T)
    plain = gradients(machine, *machine(tokens))
    again = gradients(machine, *checkpoint(machine, tokens, use_reentrant=False))
    torch.testing.assert_close(again, plain)


@pytest.fixture
def process_group():
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("steps", "streaming", "flags"),
    [
        (T, False, {}),
        (1, False, dict(find_unused_parameters=True)),
        (1, True, dict(find_unused_parameters=True)),
        (T, True, dict(find_unused_parameters=True)),
    ],
)
def test_data_parallel(steps, streaming, flags, process_group):
    """Three turns: PyTorch says in the second which parameters had no gradient in the first."""
    torch.manual_seed(0)
    machine, memory = ttm_torch.TokenTuringMachine(**SIZES), None
    parallel = DistributedDataParallel(machine, **flags)
    for _ in range(3):
        machine.zero_grad()
        outputs, memory = parallel(tokens_of(B, steps), memory)
        outputs.square().sum().backward()
        memory = memory.detach() if streaming else None
    used = {
        name for name, parameter in machine.named_parameters() if parameter.grad is not None and parameter.grad.any()
    }
    assert ("initial_memory" in used) != streaming
    assert ("step.write.summarizer.mlp.hidden.weight" in used) == (steps > 1)
