"""The checklist's conditions that are expressions, typed as there after `from ttm_torch import *`.

Names that a condition leaves open (`memory`, `inputs`, `model`) stand for values of the kind that it means.
"""

import math

import pytest
import torch

import ttm_torch

SMALL = ttm_torch.ModelConfig(memory_size=6, process_size=4, num_layers=1, mlp_dim=32)  # to be quick

# By the item's number in docs/checklist.md; all expressions of an item have to be true.
EXPRESSIONS = {
    "1.1": ["[int(n) for n in torch.__version__.split('.')[:2]] >= [1, 10]"],
    "2.1": ["VOCAB_SIZE == 13"],
    "2.2": ["DIGIT_TOKENS == range(10)"],
    "2.3": ["TIMES_TOKEN == 10"],
    "2.4": ["EOS_TOKEN == 11"],
    "2.5": ["PAD_TOKEN == 12"],
    "2.6": ["number_to_tokens(42) == [4, 2]"],
    "2.7": ['tokens_to_string([4, 2]) == "42"'],
    "2.8": ["MultiplicationDataset(batch_size=3).generate_batch()[0].shape == (3, 12)"],
    "2.9": ["len(dataset.stages) == 7", "all(min_val < max_val for min_val, max_val in dataset.stages)"],
    "2.10": ["[x.shape for x in dataset.generate_batch()] == 2 * [(batch_size, seq_len)]"],
    "3.1": ["compute_importance_weights(tokens, k=5).shape == (2, 5, 10)"],
    "3.2": [
        "torch.allclose(normalize_weights(weights).sum(-1), torch.ones(2, 5))",
        "torch.allclose(normalize_weights(weights), weights.exp() / weights.exp().sum(-1, keepdim=True))",
    ],
    "3.3": [
        "weighted_sum(tokens, weights).shape == (2, 5, 128)",
        "torch.allclose(weighted_sum(tokens, weights), weights @ tokens, atol=1e-5)",
    ],
    "3.4": ["all(token_summarize(torch.randn(2, n, 128), k=5).shape == (2, 5, 128) for n in (1, 3, 5, 10, 300))"],
    "3.5": ["token_summarize(torch.randn(2, 10, 128), k=5).shape == (2, 5, 128)"],
    "3.6": ["all(query_summarize(torch.randn(2, n, 128), k=5).shape == (2, 5, 128) for n in (1, 3, 5, 10, 300))"],
    "3.7": ["query_summarize(torch.randn(2, 10, 128), k=5).shape == (2, 5, 128)"],
    "3.8": [
        "all(pooling_summarize(torch.randn(2, n, 128), k=5).shape == (2, 5, 128) for n in (1, 3, 5, 10, 300))",
        "torch.allclose(pooling_summarize(tokens, k=5), (tokens[:, ::2] + tokens[:, 1::2]) / 2)",
    ],
    "3.9": ["pooling_summarize(torch.randn(2, 10, 128), k=5).shape == (2, 5, 128)"],
    "4.1": ["concat_memory_input(memory, input).shape[1] == memory.shape[1] + input.shape[1]"],
    "4.2": ["len(add_positional_info(0 * memory, 0 * input)[0].unique(dim=0)) == 12 + 10"],
    "4.3": ["read_operation(memory, input, r=16).shape[1] == 16"],
    "4.4": ["read_operation(torch.randn(2, 12, 128), torch.randn(2, 10, 128), r=16).shape == (2, 16, 128)"],
    "4.5": [
        "concat_for_write(memory, output, input).shape[1] == 12 + 16 + 10",
        "torch.equal(concat_for_write(memory, output, input), torch.cat([memory, output, input], dim=1))",
    ],
    "4.6": ["len(add_write_positional_info(0 * memory, 0 * output, 0 * input)[0].unique(dim=0)) == 12 + 16 + 10"],
    "4.7": ["write_operation(memory, output, input).shape == memory.shape"],
    "4.8": [
        "write_operation(torch.randn(2, 96, 128), torch.randn(2, 16, 128), torch.randn(2, 10, 128)).shape "
        "== (2, 96, 128)"
    ],
    "4.9": ["erase_add_write(memory, output, input).shape == memory.shape"],
    "4.10": [
        "concat_write(memory, input).shape == memory.shape",
        "torch.equal(concat_write(memory, input), torch.cat([memory, input], dim=1)[:, -12:])",
    ],
    "5.1": ["MultiHeadAttention(dim=128, heads=4).forward(tokens).shape == tokens.shape"],
    "5.2": ["FeedForward(dim=128, hidden_dim=512).forward(tokens).shape == tokens.shape"],
    "5.3": ["TransformerBlock(dim=128, heads=4).forward(tokens).shape == tokens.shape"],
    "5.4": ["TransformerStack(dim=128, depth=4, heads=4, hidden_dim=512).forward(read_tokens).shape == (4, 16, 128)"],
    "5.5": ["transformer(torch.randn(2, 16, 128)).shape == (2, 16, 128)"],
    "6.4": [
        "model.memory_init.shape == (1, 96, 128)",
        "any(parameter is model.memory_init for parameter in model.parameters())",
    ],
    "6.5": ["abs(torch.abs(model.memory_init).mean() - 0.008) < 0.002"],
    "6.6": ["model._broadcast_memory(batch_size=4).shape == (4, 96, 128)"],
    "6.7": ["model.pre_output1.weight.shape == (128, 128)"],
    "6.8": ["model.pre_output2.weight.shape == (64, 128)"],
    "6.9": ["model.digit_head.weight.shape == (11, 64)"],
    "6.10": ["model.eos_head.weight.shape == (1, 64)"],
    "6.11": ["model._compute_output_head(torch.randn(2, 12, 128)).shape == (2, 12, 13)"],
    "6.12": ["model._create_position_indices(inputs).shape == inputs.shape[:2]"],
    "6.13": ["model._embed_inputs(inputs).shape == (batch, seq_len, 128)"],
    "6.14": ["model._initialize_memory(batch_size).shape == (batch_size, 12, 128)"],
    "6.15": ["model._read(memory, embedded_inputs).shape == (batch, 16, 128)"],
    "6.16": ["model._process(read_tokens).shape == (batch, 16, 128)"],
    "6.17": ["model._write(memory, processed, embedded_inputs).shape == (batch, 12, 128)"],
    "6.18": ["model(inputs).shape == (batch, seq_len, 13)"],
    "6.19": ["model(torch.tensor([[1, 2, 10, 3, 11, 12, 12, 12, 12, 12, 12, 12]])).shape == (1, 12, 13)"],
    "7.1": ["torch.equal(model._detect_eos(logits), logits.softmax(-1)[..., 11] > 0.5)"],
    "7.2": ["model._create_eos_mask(torch.tensor([[False, True, False, True]])).tolist() == [[0, 0, 1, 1]]"],
    "7.3": [
        "torch.equal(model._apply_digit_mask(logits, mask)[..., :11], logits[..., :11] - 1000.0 * mask[..., None])",
        "torch.equal(model._apply_digit_mask(logits, mask)[..., 11:], logits[..., 11:])",
    ],
    "7.4": [
        "torch.equal(model._apply_eos_boost(logits, mask)[..., 11], logits[..., 11] + 1000.0 * mask)",
        "torch.equal(model._apply_eos_boost(logits, mask)[..., :11], logits[..., :11])",
        "torch.equal(model._apply_eos_boost(logits, mask)[..., 12], logits[..., 12])",
    ],
    "7.5": [
        "model._apply_eos_masking(logits, has_eos).argmax(-1)[model._create_eos_mask(has_eos) == 1].eq(11).all()",
        "model._apply_eos_masking(logits, has_eos)[model._create_eos_mask(has_eos) == 0]"
        ".equal(logits[model._create_eos_mask(has_eos) == 0])",
        "0 < model._create_eos_mask(has_eos).sum() < 4 * 12",
    ],
    "8.1": ["create_target_mask(torch.tensor([[1, 11, 12, 11]])).tolist() == [[1, 1, 0, 0]]"],
    "8.2": [
        "compute_ce_loss(logits, targets).shape == ()",
        "compute_ce_loss(0 * logits, targets).isclose(torch.tensor(13.0).log())",
    ],
    "8.3": [
        "compute_masked_ce_loss(logits, targets, 0 * mask) == 0",
        "compute_masked_ce_loss(0 * logits, targets, mask).isclose(mask.sum() * math.log(13))",
    ],
    "8.4": [
        "compute_normalized_ce_loss(logits, targets) == compute_masked_ce_loss(logits, targets, mask) / mask.sum()"
    ],
    "8.5": ["find_eos_positions(torch.tensor([[1, 11, 11], [11, 12, 12], [1, 2, 3]])).tolist() == [1, 0, 3]"],
    "8.6": [
        "extract_eos_probs(logits).shape == (batch, seq_len)",
        "torch.allclose(extract_eos_probs(logits), logits.softmax(-1)[..., 11])",
    ],
    "8.7": ["create_eos_target(torch.tensor([1, 0, 3]), seq_len=3).tolist() == [[0, 1, 0], [1, 0, 0], 3 * [0]]"],
    "8.8": [
        "compute_eos_bce(probs, eos_targets).shape == ()",
        "compute_eos_bce(probs, eos_targets).isclose(torch.nn.functional.binary_cross_entropy(probs, eos_targets))",
    ],
    "8.9": ["compute_total_loss(logits, targets).shape == ()"],
    "8.11": ["0 < compute_total_loss(model(inputs), targets) < 10"],
    "9.1": ["type(torch.optim.Adam(model.parameters())) is type(make_optimizer(model)) is torch.optim.Adam"],
    "9.2": ["optimizer.param_groups[0]['lr'] == 0.001"],
    "9.3": ["optimizer.param_groups[0]['betas'] == (0.9, 0.99)"],
    "9.4": ["optimizer.param_groups[0]['eps'] == 1e-8"],
    "9.5": [
        "optimizer.param_groups[0]['weight_decay'] == 1e-4",
        "{module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}",
    ],
    "10.12": ["isinstance(TTMModel(), torch.nn.Module)", "len(MultiplicationDataset().generate_batch()) == 2"],
    "10.15": ["Config().train.eval_every_epochs == 10"],
    "10.16": ["Config().train.num_examples >= 3"],
    "10.17": ["Config().train.patience_epochs == 20"],
    "10.20": ["(Config().curriculum.window, Config().curriculum.threshold) == (5, 0.9)"],
    "10.22": ["Config().curriculum.max_epochs_per_stage == 1000"],
    "11.1": ["type(measure_flops(model)) is int", "measure_flops(model) > 0"],
    "11.2": ["type(measure_memory(model)) is float", "measure_memory(model) > 0"],
}


@pytest.fixture(scope="module")
def names():
    """Everything that the conditions speak of."""
    space = {"torch": torch, "math": math}
    exec("from ttm_torch import *", space)
    torch.manual_seed(0)
    model, dataset = ttm_torch.TTMModel(), ttm_torch.MultiplicationDataset(batch_size=4)
    inputs, targets = map(torch.as_tensor, dataset.generate_batch())
    logits = 4 * torch.randn(4, 12, 13)
    return space | {
        "model": model,
        "dataset": dataset,
        "optimizer": ttm_torch.make_optimizer(model),
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
        "eos_targets": ttm_torch.create_eos_target(ttm_torch.find_eos_positions(targets), 12),
        "batch_size": 4,
        "batch": 4,
        "seq_len": 12,
    }


@pytest.fixture(scope="module")
def model_of_12():
    return ttm_torch.TTMModel(ttm_torch.ModelConfig(memory_size=12))


@pytest.mark.parametrize("number", EXPRESSIONS)
def test_expression(number, names, model_of_12):
    space = dict(names)
    if number in ("6.14", "6.15", "6.17"):
        space["model"] = model_of_12
    if number == "11.2":
        space["model"] = ttm_torch.TTMModel(SMALL)
    for expression in EXPRESSIONS[number]:
        assert eval(expression, space), expression
