"""`measure_flops` and `measure_memory` of the twin: by hand, against what autograd keeps, and what cannot be."""

import dataclasses

import pytest
import torch

import ttm_torch
from ttm_torch import SimpleTokenTuringMachine, TokenTuringMachine, TTMModel, measure_flops, measure_memory
from ttm_torch.multiplication.objective import loss_fn

SMALL = dict(width=16, num_tokens=5, memory_size=7, process_size=3, num_layers=2, mlp_dim=11, num_heads=2)


@pytest.fixture
def model(tiny_config):
    return TTMModel(tiny_config.model)


def test_flops_by_hand():
    """Pooling and a queue multiply nothing, so a step is the two products of the MLP on each of 3 tokens."""
    machine = TokenTuringMachine(**{**SMALL, "num_layers": 1}, read="pooling", write="concat", processing="mlp")
    assert measure_flops(machine, (2, 4, 5, 16)) == 2 * 2 * 4 * 3 * (16 * 11 + 11 * 16)


def test_one_problem_where_no_shape_is_given(model):
    assert measure_flops(model) == measure_flops(model, (1, 12))
    assert measure_flops(model, (5, 12)) == 5 * measure_flops(model)


def test_memory_is_what_autograd_keeps_and_the_optimiser_holds(tiny_config):
    """Kept tensors are counted here by hooks, each storage once."""
    model = TTMModel(dataclasses.replace(tiny_config.model, mlp_dim=1024))
    batch = dict.fromkeys(("inputs", "targets", "carries"), torch.zeros(4, 12, dtype=torch.int32))
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss_fn(model.train(), batch)
    held = 3 * 4 * sum(p.numel() for p in model.parameters())  # with Adam's two moments, in float32
    expected = (held + sum(storage.nbytes() for storage in kept.values())) / 1e6
    assert expected < measure_memory(model, (4, 12)) < 1.4 * expected


def test_gradients_and_optimiser_state_are_counted():
    """Of a machine that is nearly all parameters, the peak is in Adam's step: four of each, and temporaries of one."""
    machine = TokenTuringMachine(**{**SMALL, "num_layers": 8, "mlp_dim": 4096})
    parameters_mb = 4 * sum(p.numel() for p in machine.parameters()) / 1e6
    assert 4 * parameters_mb < measure_memory(machine, (1, 1, 5, 16)) < 4.5 * parameters_mb


def test_memory_grows_with_the_batch_alone():
    machine = SimpleTokenTuringMachine(**SMALL)
    sizes = [measure_memory(machine, (batch_size, 4, 5, 16)) for batch_size in (16, 32, 48)]
    assert sizes[2] - sizes[1] == pytest.approx(sizes[1] - sizes[0], rel=0.01)
    assert sizes[0] == measure_memory(machine, (16, 4, 5, 16))


def test_the_multiplier_is_measured_with_128_problems(model):
    assert measure_memory(model) == measure_memory(model, (128, 12))


@pytest.mark.parametrize("measure", [measure_flops, measure_memory])
def test_the_model_and_the_random_numbers_are_left_alone(measure, model):
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    for training in (True, False):
        measure(model.train(training))
        assert model.training == training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("shape", [None, (2, 3), (2, 0, 5, 16)])
@pytest.mark.parametrize("measure", [measure_flops, measure_memory])
def test_a_machine_needs_a_shape(measure, shape):
    with pytest.raises(ValueError, match=r"input_shape must be \[B, T, N, D\], got"):
        measure(TokenTuringMachine(**SMALL), shape)


@pytest.mark.parametrize("measure", [measure_flops, measure_memory])
def test_a_multiplier_has_twelve_places(measure, model):
    with pytest.raises(ValueError, match=r"input_shape must be \[B, 12\], got \(2, 11\)"):
        measure(model, (2, 11))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_allocator_of_cuda_agrees_with_the_count():
    model = TTMModel(ttm_torch.ModelConfig(memory_size=8, process_size=8, num_layers=2, mlp_dim=256))
    counted = measure_memory(model, (64, 12))
    assert measure_memory(model.cuda(), (64, 12)) == pytest.approx(counted, rel=0.25)
