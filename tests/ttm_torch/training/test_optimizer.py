"""Muon and the scheduler as objects of torch.optim; `parity`'s optimizer cases check their arithmetic."""

import dataclasses
import io

import pytest
import torch

import ttm_torch
from ttm_torch.training.optimizer import newton_schulz

MODEL = ttm_torch.ModelConfig(
    width=8, memory_size=4, process_size=2, num_layers=1, mlp_dim=8, num_heads=2, dropout_rate=0.0, carry_head=True
)
CONFIG = ttm_torch.OptimizerConfig(name="muon", weight_decay=1e-2, warmup_steps=3)


def parts(model=None):
    torch.manual_seed(0)
    model = ttm_torch.TTMModel(MODEL) if model is None else model
    optimizer = ttm_torch.make_optimizer(model, CONFIG)
    return model, optimizer, ttm_torch.make_scheduler(optimizer, CONFIG)


def train(model, optimizer, scheduler, steps):
    dataset = ttm_torch.MultiplicationDataset(batch_size=4)
    for step in steps:
        ttm_torch.train_step(model, dataset.batch(0, step)[:3], optimizer, scheduler)
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def saved_and_loaded(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", ["adam", "adamw", "muon"])
def test_the_groups_say_what_the_config_says(name):
    optimizer = ttm_torch.make_optimizer(parts()[0], dataclasses.replace(CONFIG, name=name))
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.001, (0.9, 0.99), 1e-8, 1e-2)


def test_every_parameter_is_in_one_group():
    model, optimizer, _ = parts()
    matrices, others = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert not matrices & others
    assert matrices | others == {id(parameter) for parameter in model.parameters()}
    linear = [m.weight for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "machine" in name]
    assert matrices == {id(weight) for weight in linear}


def test_muon_goes_on_to_the_bit_from_saved_states():
    expected = train(*parts(), range(6))
    model, optimizer, scheduler = parts()
    train(model, optimizer, scheduler, range(3))
    states = [saved_and_loaded(part.state_dict()) for part in (model, optimizer, scheduler)]
    again = parts()
    for part, state in zip(again, states, strict=True):
        part.load_state_dict(state)
    got = train(*again, range(3, 6))
    assert all(torch.equal(got[name], expected[name]) for name in expected)
    assert again[2].get_last_lr() == [ttm_torch.learning_rate(CONFIG, 6)] * 2


def test_a_parameter_without_gradient_is_left_alone():
    model, optimizer, _ = parts()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.carry_head.weight.grad = torch.ones_like(model.carry_head.weight)
    assert optimizer.step(lambda: 3.0) == 3.0
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"carry_head.weight"}


@pytest.mark.parametrize("shape", [(6, 6), (6, 40), (40, 6)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_orthogonalising_pulls_singular_values_towards_1(shape, dtype):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    result = newton_schulz(1024 * matrix)
    assert result.dtype == torch.promote_types(dtype, torch.float32)
    values = torch.linalg.svdvals(result)
    assert 0.65 < values.min() <= values.max() < 1.25
    # The vectors stay: the result times the matrix's transpose is symmetric and positive.
    product = result.double() @ matrix.double().T
    torch.testing.assert_close(product, product.T, atol=1e-5 * product.abs().max().item(), rtol=0)
    assert torch.linalg.eigvalsh(product).min() > -1e-5 * product.abs().max()
