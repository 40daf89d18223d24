"""What the twin's multiplier does where `parity` does not go: too few places, and bfloat16, with a step a product."""

import pytest
import torch

import ttm_torch
from ttm_jax.multiplication.problems import encode_problems

INPUTS = torch.as_tensor(encode_problems([12, 99999], [3, 99999]))


@pytest.fixture(scope="module")
def products():
    fields = dict(width=16, memory_size=4, process_size=2, num_layers=1, mlp_dim=16, num_heads=2, dropout_rate=0.0)
    torch.manual_seed(0)
    return ttm_torch.TTMModel(ttm_torch.ModelConfig(**fields, schedule="product", carry_head=True))


@torch.no_grad()
def test_what_too_few_places_leave_unanswered_is_nan(products):
    whole, part = products.raw_logits(INPUTS), products.raw_logits(INPUTS, num_steps=4)
    torch.testing.assert_close(part[0], whole[0, :4])
    torch.testing.assert_close(part[1, :2], whole[1, :2])
    assert part[1, 2:].isnan().all()
    targets = torch.zeros(2, 4, dtype=torch.int64)  # the product has more digits, but this says zeros
    result = ttm_torch.eval_step(products, {"inputs": INPUTS, "targets": targets})
    assert result["loss"].isnan()
    assert result["predictions"][1, 2:].tolist() == [ttm_torch.PAD_TOKEN] * 2


@torch.no_grad()
def test_bfloat16_is_close_to_float32(products):
    config = ttm_torch.ModelConfig(**{**vars(products.config), "dtype": "bfloat16"})
    model = ttm_torch.TTMModel(config)
    model.load_state_dict(products.state_dict())
    for ours, exact in zip(model.heads(INPUTS), products.heads(INPUTS), strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(
            ours[..., : ttm_torch.PAD_TOKEN], exact[..., : ttm_torch.PAD_TOKEN], atol=0.1, rtol=0
        )
