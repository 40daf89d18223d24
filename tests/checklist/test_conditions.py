"""The checklist's conditions of phases 2 to 10 that are expressions, typed as there after `from ttm_torch import *`.

Names that a condition leaves open (`memory`, `inputs`, `model`) stand for values of the kind that it means. The sizes
with 12 memory tokens are those of a model built with `memory_size=12`.
"""

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import ttm_torch

SMALL = ttm_torch.ModelConfig(memory_size=6, process_size=4, num_layers=1, mlp_dim=32)


@pytest.fixture(scope="module")
def names():
    """Everything that the conditions speak of."""
    space = {"torch": torch, "math": math, "np": np}
    exec("from ttm_torch import *", space)
    torch.manual_seed(0)
    model, dataset = ttm_torch.TTMModel(), ttm_torch.MultiplicationDataset(batch_size=4)
    optimizer = ttm_torch.make_optimizer(model)
    inputs, targets = map(torch.as_tensor, dataset.generate_batch())
    logits = 4 * torch.randn(4, 12, 13)
    small = ttm_torch.TTMModel(dataclasses.replace(ttm_torch.ModelConfig(), memory_size=12))
    return space | {
        "model": model,
        "model_of_12": small,
        "dataset": dataset,
        "optimizer": optimizer,
        "tokens": torch.randn(2, 10, 128),
        "weights": torch.randn(2, 5, 10),
        "memory": torch.randn(4, 12, 128),
        "input": torch.randn(4, 10, 128),
        "output": torch.randn(4, 16, 128),
        "embedded_inputs": torch.randn(4, 12, 128),
        "read_tokens": torch.randn(4, 16, 128),
        "processed": torch.randn(4, 16, 128),
        "transformer": ttm_torch.TransformerStack(dim=128, depth=4, heads=4, hidden_dim=512),
        "inputs": inputs,
        "targets": targets,
        "logits": logits,
        "mask": ttm_torch.create_target_mask(targets),
        "has_eos": ttm_torch.detect_eos(logits),
        "probs": ttm_torch.extract_eos_probs(logits),
        "positions": ttm_torch.find_eos_positions(targets),
        "batch_size": 4,
        "batch": 4,
        "seq_len": 12,
    }


CONDITIONS = """
VOCAB_SIZE == 13
DIGIT_TOKENS == range(10)
TIMES_TOKEN == 10
EOS_TOKEN == 11
PAD_TOKEN == 12
number_to_tokens(42) == [4, 2]
tokens_to_string([4, 2]) == "42"
len(dataset.stages) == 7
all(x.shape == (dataset.batch_size, dataset.seq_len) for x in dataset.generate_batch())
len(augment_batch(*dataset.generate_batch())) == 2
compute_importance_weights(tokens, k=5).shape == (2, 5, 10)
torch.allclose(normalize_weights(weights).sum(-1), torch.ones(2, 5))
weighted_sum(tokens, weights).shape == (2, 5, 128)
token_summarize(tokens, k=5).shape[1] == 5
token_summarize(torch.randn(2, 10, 128), k=5).shape == (2, 5, 128)
query_summarize(tokens, k=5).shape[1] == 5
query_summarize(torch.randn(2, 10, 128), k=5).shape == (2, 5, 128)
pooling_summarize(tokens, k=5).shape[1] == 5
pooling_summarize(torch.randn(2, 10, 128), k=5).shape == (2, 5, 128)
concat_memory_input(memory, input).shape[1] == memory.shape[1] + input.shape[1]
len((add_positional_info(0 * memory, 0 * input)[0].unique(dim=0))) == 12 + 10
read_operation(memory, input, r=16).shape[1] == 16
read_operation(torch.randn(2, 12, 128), torch.randn(2, 10, 128), r=16).shape == (2, 16, 128)
concat_for_write(memory, output, input).shape[1] == 12 + 16 + 10
len(add_write_positional_info(0 * memory, 0 * output, 0 * input)[0].unique(dim=0)) == 12 + 16 + 10
write_operation(memory, output, input).shape == memory.shape
write_operation(torch.randn(2, 96, 128), torch.randn(2, 16, 128), torch.randn(2, 10, 128)).shape == (2, 96, 128)
erase_add_write(memory, output, input).shape == memory.shape
concat_write(memory, input).shape == memory.shape
MultiHeadAttention(dim=128, heads=4)(tokens).shape == tokens.shape
FeedForward(dim=128, hidden_dim=512)(tokens).shape == tokens.shape
TransformerBlock(dim=128, heads=4)(tokens).shape == tokens.shape
TransformerStack(dim=128, depth=4, heads=4, hidden_dim=512)(torch.randn(2, 16, 128)).shape == (2, 16, 128)
transformer(torch.randn(2, 16, 128)).shape == (2, 16, 128)
isinstance(model.memory_init, torch.nn.Parameter)
model.memory_init.shape == (1, 96, 128)
abs(torch.abs(model.memory_init).mean() - 0.008) < 0.002
model._broadcast_memory(batch_size=4).shape == (4, 96, 128)
model.pre_output1.weight.shape == (128, 128)
model.pre_output2.weight.shape == (64, 128)
model.digit_head.weight.shape == (11, 64)
model.eos_head.weight.shape == (1, 64)
model._compute_output_head(torch.randn(2, 12, 128)).shape == (2, 12, 13)
model._create_position_indices(inputs).shape == inputs.shape[:2]
model._embed_inputs(inputs).shape == (batch, seq_len, 128)
model_of_12._initialize_memory(batch_size).shape == (batch_size, 12, 128)
model_of_12._read(memory, embedded_inputs).shape == (batch, 16, 128)
model._process(read_tokens).shape == (batch, 16, 128)
model_of_12._write(memory, processed, embedded_inputs).shape == (batch, 12, 128)
model(inputs).shape == (batch, seq_len, 13)
model(torch.tensor([[1, 2, 10, 3, 11, 12, 12, 12, 12, 12, 12, 12]])).shape == (1, 12, 13)
torch.equal(model._detect_eos(logits), logits.softmax(-1)[..., 11] > 0.5)
model._create_eos_mask(torch.tensor([[False, True, False, True]])).tolist() == [[0, 0, 1, 1]]
torch.equal(model._apply_digit_mask(logits, mask)[..., :11], logits[..., :11] - 1000.0 * mask[..., None])
torch.equal(model._apply_digit_mask(logits, mask)[..., 11:], logits[..., 11:])
torch.equal(model._apply_eos_boost(logits, mask)[..., 11], logits[..., 11] + 1000.0 * mask)
torch.equal(model._apply_eos_boost(logits, mask)[..., :11], logits[..., :11])
model._apply_eos_masking(logits, has_eos).argmax(-1)[model._create_eos_mask(has_eos) == 1].eq(11).all()
create_target_mask(torch.tensor([[1, 11, 12, 11]])).tolist() == [[1, 1, 0, 0]]
compute_ce_loss(logits, targets).shape == ()
abs(compute_masked_ce_loss(logits, targets, torch.ones(4, 12)) / 48 - compute_ce_loss(logits, targets)) < 1e-5
compute_masked_ce_loss(logits, targets, 0 * mask) == 0
compute_normalized_ce_loss(logits, targets) == compute_masked_ce_loss(logits, targets, mask) / mask.sum()
find_eos_positions(torch.tensor([[1, 11, 12], [11, 12, 12]])).tolist() == [1, 0]
extract_eos_probs(logits).shape == (batch, seq_len)
create_eos_target(positions, seq_len).argmax(dim=1).equal(positions)
create_eos_target(positions, seq_len).sum() == batch
compute_eos_bce(probs, create_eos_target(positions, seq_len)).shape == ()
compute_total_loss(logits, targets).shape == ()
compute_total_loss(model(inputs), targets) < 10
optimizer.param_groups[0]['lr'] == 0.001
optimizer.param_groups[0]['betas'] == (0.9, 0.99)
optimizer.param_groups[0]['eps'] == 1e-8
optimizer.param_groups[0]['weight_decay'] == 1e-4
any(isinstance(module, torch.nn.Dropout) and module.p == 0.1 for module in model.modules())
isinstance(torch.optim.Adam(model.parameters()), type(optimizer))
isinstance(TTMModel(), torch.nn.Module)
len(MultiplicationDataset().generate_batch()) == 2
""".strip().splitlines()


@pytest.mark.parametrize("condition", CONDITIONS)
def test_expression(condition, names):
    assert eval(condition, dict(names))


def test_embeddings(names):
    space = dict(names)
    exec(
        "token_embed = nn.Embedding(13, 128, embedding_init=nn.initializers.normal(stddev=0.01))\n"
        "pos_embed = nn.Embedding(12, 128)\n"
        "tokens, places = token_embed(torch.tensor([1, 2, 3])), pos_embed(torch.tensor([0, 1, 2]))\n"
        "combined = tokens + places",
        space,
    )
    assert space["tokens"].shape == space["places"].shape == space["combined"].shape == (3, 128)
    assert space["token_embed"].weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert space["pos_embed"].weight.std().item() == pytest.approx(1.0, rel=0.1)


def test_increase_difficulty():
    dataset = ttm_torch.MultiplicationDataset()
    before = dataset.current_stage
    dataset.increase_difficulty()
    assert dataset.current_stage == before + 1


def test_eos_loss_has_the_factor_0_1(names):
    logits, targets, positions = names["logits"], names["targets"], names["positions"]
    mask = ttm_torch.create_target_mask(targets)
    target = ttm_torch.create_eos_target(positions, 12)
    eos_loss = ttm_torch.compute_eos_bce(ttm_torch.extract_eos_probs(logits), target, mask)
    expected = ttm_torch.compute_normalized_ce_loss(logits, targets) + 0.1 * eos_loss
    torch.testing.assert_close(ttm_torch.compute_total_loss(logits, targets), expected)


def test_free_functions_without_parameters_follow_from_the_seed_alone():
    tokens = torch.randn(2, 10, 128)
    torch.manual_seed(1)
    first = ttm_torch.token_summarize(tokens, k=5)
    state = torch.get_rng_state()
    again = ttm_torch.token_summarize(tokens, k=5)
    assert torch.equal(first, again)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, ttm_torch.token_summarize(tokens, k=5, seed=1))
    module = ttm_torch.MLPSummarizer(5)
    assert torch.equal(ttm_torch.token_summarize(tokens, k=5, params=module.state_dict()), module(tokens))


def test_the_rates_of_the_scheduler():
    optimizer = ttm_torch.make_optimizer(torch.nn.Linear(1, 1))
    scheduler = ttm_torch.make_scheduler(optimizer)
    rates = []
    for _ in range(1201):
        rates.append(scheduler.get_lr()[0])
        assert optimizer.param_groups[0]["lr"] == rates[-1]
        optimizer.step()
        scheduler.step()
    assert all(a < b for a, b in pairwise(rates[:101]))
    assert all(a > b for a, b in pairwise(rates[100:1101]))
    assert rates[600] == pytest.approx((0.002 + 0.0001) / 2)
    assert (rates[100], rates[1100], rates[1200]) == (0.002, 0.0001, 0.0001)


def test_gradients_are_clipped():
    parameters = [torch.nn.Parameter(torch.randn(5))]
    parameters[0].grad = 100 * torch.randn(5)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
    assert parameters[0].grad.norm() <= 1.0


def test_train_step_and_eval_step():
    torch.manual_seed(0)
    model, dataset = ttm_torch.TTMModel(SMALL), ttm_torch.MultiplicationDataset(batch_size=8)
    optimizer = ttm_torch.make_optimizer(model)
    scheduler = ttm_torch.make_scheduler(optimizer)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rate, batch = scheduler.get_lr()[0], dataset.generate_batch()
    losses = [ttm_torch.train_step(model, batch, optimizer, scheduler) for _ in range(12)]
    assert losses[0].shape == ()
    assert losses[-1] < losses[0]
    assert scheduler.get_lr()[0] > rate
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert 0 < torch.stack([grad.norm() for grad in grads]).norm() <= 1.0 + 1e-6
    assert all(not torch.equal(before[name], tensor) for name, tensor in model.state_dict().items() if "step" in name)

    metrics = ttm_torch.eval_step(model, batch)
    assert model.training
    inputs, targets = map(torch.as_tensor, batch)
    assert torch.equal(metrics["predictions"], model.eval()(inputs).argmax(dim=-1))
    valid = ttm_torch.create_target_mask(targets) == 1
    right = metrics["predictions"] == targets
    assert metrics["position_accuracy"].item() == pytest.approx(right[valid].float().mean().item())
    assert metrics["sequence_accuracy"].item() == pytest.approx((right | ~valid).all(dim=1).float().mean().item())
