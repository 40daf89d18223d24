"""The checklist's conditions on the PyTorch twin; expressions are typed as there, after `from ttm_torch import *`.

Names that a condition leaves open (`memory`, `inputs`, `model`) stand for values of the kind that it means. The sizes
with 12 memory tokens are those of a model built with `memory_size=12`.
"""

import inspect
import json
import math
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

import ttm_torch
from ttm_torch.state import create_state

ROOT = Path(__file__).parents[2]
SMALL = ttm_torch.ModelConfig(memory_size=6, process_size=4, num_layers=1, mlp_dim=32)

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
    "6.14": ["model_of_12._initialize_memory(batch_size).shape == (batch_size, 12, 128)"],
    "6.15": ["model_of_12._read(memory, embedded_inputs).shape == (batch, 16, 128)"],
    "6.16": ["model._process(read_tokens).shape == (batch, 16, 128)"],
    "6.17": ["model_of_12._write(memory, processed, embedded_inputs).shape == (batch, 12, 128)"],
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
    "9.1": ["type(torch.optim.Adam(model.parameters())) is type(optimizer)"],
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
    "11.2": ["type(measure_memory(small_model)) is float", "measure_memory(small_model) > 0"],
}


@pytest.fixture(scope="module")
def names():
    """Everything that the conditions speak of."""
    space = {"torch": torch, "math": math, "np": np}
    exec("from ttm_torch import *", space)
    torch.manual_seed(0)
    model, dataset = ttm_torch.TTMModel(), ttm_torch.MultiplicationDataset(batch_size=4)
    inputs, targets = map(torch.as_tensor, dataset.generate_batch())
    logits = 4 * torch.randn(4, 12, 13)
    return space | {
        "model": model,
        "model_of_12": ttm_torch.TTMModel(ttm_torch.ModelConfig(memory_size=12)),
        "small_model": ttm_torch.TTMModel(SMALL),
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


@pytest.mark.parametrize("number", EXPRESSIONS)
def test_expression(number, names):
    for expression in EXPRESSIONS[number]:
        assert eval(expression, dict(names)), expression


@pytest.fixture(scope="module")
def embeddings(names):
    space = dict(names)
    exec(
        "token_embed = nn.Embedding(13, 128, embedding_init=nn.initializers.normal(stddev=0.01))\n"
        "pos_embed = nn.Embedding(12, 128)",
        space,
    )
    return space["token_embed"], space["pos_embed"]


def test_token_embedding(embeddings):
    token_embed, _ = embeddings
    assert token_embed(torch.tensor([1, 2, 3])).shape == (3, 128)
    assert token_embed.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_position_embedding(embeddings):
    _, pos_embed = embeddings
    assert pos_embed(torch.tensor([0, 1, 2])).shape == (3, 128)
    assert pos_embed.weight.requires_grad


def test_sum_of_embeddings(embeddings, names):
    token_embed, pos_embed = embeddings
    assert (token_embed(torch.tensor([1, 2, 3])) + pos_embed(torch.tensor([0, 1, 2]))).shape == (3, 128)
    model, inputs = names["model"], names["inputs"]
    combined = model.token_embed(inputs) + model.pos_embed(model._create_position_indices(inputs))
    assert torch.equal(model._embed_inputs(inputs), combined)


def test_increase_difficulty():
    dataset = ttm_torch.MultiplicationDataset()
    before = dataset.current_stage
    dataset.increase_difficulty()
    assert dataset.current_stage == before + 1


FREE_FUNCTIONS = {
    "compute_importance_weights": ((10,), {"k": 5}),
    "token_summarize": ((10,), {"k": 5}),
    "query_summarize": ((10,), {"k": 5}),
    "add_positional_info": ((12, 10), {}),
    "read_operation": ((12, 10), {}),
    "add_write_positional_info": ((12, 16, 10), {}),
    "write_operation": ((12, 16, 10), {}),
    "erase_add_write": ((12, 16, 10), {}),
}
MODULES = {
    "compute_importance_weights": lambda: ttm_torch.MLPSummarizer(5),
    "token_summarize": lambda: ttm_torch.MLPSummarizer(5),
    "query_summarize": lambda: ttm_torch.QuerySummarizer(5),
    "add_positional_info": lambda: ttm_torch.Positions(22, 128),
    "read_operation": lambda: ttm_torch.Read(16, width=128, num_tokens=22),
    "add_write_positional_info": lambda: ttm_torch.Positions(38, 128),
    "write_operation": lambda: write_module("mlp"),
    "erase_add_write": lambda: write_module("erase_add"),
}


def write_module(kind):
    return ttm_torch.make_write(kind, memory_size=12, process_size=16, width=128, num_tokens=38)


@pytest.mark.parametrize("name", FREE_FUNCTIONS)
def test_free_functions_follow_from_their_arguments_alone(name):
    """Fresh parameters come from the seed; given ones are used; no random number of the caller's is drawn."""
    function, (counts, options) = getattr(ttm_torch, name), FREE_FUNCTIONS[name]
    tokens = [torch.randn(2, count, 128) for count in counts]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    fresh = function(*tokens, **options)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(function(*tokens, **options), fresh)
    assert not torch.equal(function(*tokens, **options, seed=1), fresh)
    first, other = (MODULES[name]().state_dict() for _ in range(2))
    given = function(*tokens, **options, params=first)
    assert torch.equal(function(*tokens, **options, params=first, seed=1), given)
    assert not torch.equal(function(*tokens, **options, params=other), given)


def test_no_other_function_has_parameters():
    found = {
        name
        for module in (ttm_torch.summarize, ttm_torch.memory)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and "params" in inspect.signature(value).parameters and name != "apply"
    }
    assert found == set(FREE_FUNCTIONS)


def test_eos_loss_has_the_factor_0_1(names):
    logits, targets = names["logits"], names["targets"]
    eos_loss = ttm_torch.compute_eos_bce(names["probs"], names["eos_targets"], names["mask"])
    expected = ttm_torch.compute_normalized_ce_loss(logits, targets) + 0.1 * eos_loss
    torch.testing.assert_close(ttm_torch.compute_total_loss(logits, targets), expected)


@pytest.fixture(scope="module")
def rates():
    """`scheduler.get_lr()[0]` at steps 0 to 1200."""
    optimizer = ttm_torch.make_optimizer(torch.nn.Linear(1, 1))
    scheduler = ttm_torch.make_scheduler(optimizer)
    rates = []
    for _ in range(1201):
        rates.append(scheduler.get_lr()[0])
        assert optimizer.param_groups[0]["lr"] == rates[-1]
        optimizer.step()
        scheduler.step()
    return rates


def test_the_rate_rises_for_100_steps(rates):
    assert all(a < b for a, b in pairwise(rates[:101]))
    np.testing.assert_allclose(np.diff(rates[:101]), np.diff(rates[:101])[0])


def test_the_rate_falls_along_a_cosine(rates):
    cosine = [0.0001 + 0.0019 * (1 + math.cos(math.pi * n / 1000)) / 2 for n in range(1001)]
    np.testing.assert_allclose(rates[100:1101], cosine)


def test_the_peak_rate_is_twice_the_base_rate(rates):
    assert rates[100] == max(rates) == 0.002


def test_the_least_rate_is_a_tenth_of_the_base_rate(rates):
    assert rates[1100:] == [0.0001] * 101


def test_gradients_are_clipped():
    parameters = [torch.nn.Parameter(torch.randn(5))]
    parameters[0].grad = 100 * torch.randn(5)
    torch.nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
    assert parameters[0].grad.norm() <= 1.0


@pytest.fixture
def small():
    """A small model, a batch, and the optimiser and the scheduler of the model."""
    torch.manual_seed(0)
    model = ttm_torch.TTMModel(SMALL)
    optimizer = ttm_torch.make_optimizer(model)
    batch = ttm_torch.MultiplicationDataset(batch_size=8).generate_batch()
    return model, batch, optimizer, ttm_torch.make_scheduler(optimizer)


class TestTrainStep:
    @pytest.fixture(autouse=True)
    def step(self, small):
        """What was before the step, and the loss that it gave."""
        model, batch, optimizer, scheduler = small
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        rate = scheduler.get_lr()[0]
        return before, rate, ttm_torch.train_step(model, batch, optimizer, scheduler)

    def test_gradients_exist_and_are_clipped(self, small):
        model = small[0]
        grads = [parameter.grad for parameter in model.parameters()]
        assert all(grad is not None and grad.isfinite().all() for grad in grads)
        assert 0 < torch.stack([grad.norm() for grad in grads]).norm() <= 1.0 + 1e-6

    def test_parameters_change(self, small, step):
        before, _, _ = step
        after = dict(small[0].named_parameters())
        assert not any(torch.equal(before[name], after[name]) for name in before)

    def test_the_rate_of_the_next_step_is_set(self, small, step):
        _, rate, _ = step
        _, _, optimizer, scheduler = small
        assert scheduler.last_epoch == 1
        assert optimizer.param_groups[0]["lr"] == scheduler.get_lr()[0] > rate

    def test_the_loss_is_a_detached_scalar(self, step):
        *_, loss = step
        assert loss.shape == ()
        assert loss.isfinite()
        assert not loss.requires_grad

    def test_gradients_are_not_accumulated(self, small):
        """With the rate at 0 nothing but the gradient could change from step to step."""
        model, batch, _, _ = small
        frozen = torch.optim.SGD(model.parameters(), lr=0.0)
        grads = []
        for _ in range(2):
            torch.manual_seed(0)  # of dropout
            ttm_torch.train_step(model, batch, frozen, max_grad_norm=None)
            grads.append(model.head.digit_head.weight.grad.clone())
        assert torch.equal(*grads)

    def test_it_learns(self, small):
        model, batch, optimizer, scheduler = small
        losses = [ttm_torch.train_step(model, batch, optimizer, scheduler) for _ in range(12)]
        assert losses[-1] < losses[0]


class TestEvalStep:
    @pytest.fixture
    def metrics(self, small):
        return ttm_torch.eval_step(*small[:2])

    @pytest.fixture
    def valid(self, small):
        return ttm_torch.create_target_mask(torch.as_tensor(small[1][1])) == 1

    @pytest.fixture
    def right(self, small, metrics):
        return metrics["predictions"] == torch.as_tensor(small[1][1])

    def test_predictions(self, small, metrics):
        model, (inputs, _), _, _ = small
        predictions = model.eval()(torch.as_tensor(inputs)).argmax(dim=-1)
        assert torch.equal(metrics["predictions"], predictions)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_mode_is_evaluation_and_then_as_before(self, training, small, metrics):
        model, batch, _, _ = small
        again = ttm_torch.eval_step(model.train(training), batch)
        assert model.training == training
        assert again["loss"] == metrics["loss"]  # no dropout

    def test_position_accuracy(self, metrics, right, valid):
        assert 0 < valid.sum() < valid.numel()
        assert metrics["position_accuracy"] == right[valid].sum() / valid.sum()

    def test_sequence_accuracy(self, small, metrics, right, valid):
        assert metrics["sequence_accuracy"] == (right | ~valid).all(dim=1).float().mean()

    def test_accuracies_by_hand(self):
        """3 of 5 positions and 1 of 2 sequences; what follows EOS is not asked for."""
        targets = torch.tensor([[4, 11, 12, 12], [1, 2, 11, 12]])
        predictions = torch.tensor([[4, 11, 7, 7], [0, 2, 12, 12]])
        assert ttm_torch.position_accuracy(predictions, targets).item() == pytest.approx(3 / 5)
        assert ttm_torch.sequence_accuracy(predictions, targets).item() == 1 / 2

    def test_metrics(self, metrics):
        assert {"position_accuracy", "sequence_accuracy"} <= metrics.keys()


def test_the_optimiser_and_the_rates_are_those_of_phase_9():
    config = ttm_torch.Config().optimizer
    state = create_state(ttm_torch.Config(model=SMALL, optimizer=config))
    assert type(state.optimizer) is torch.optim.Adam
    group = {name: state.optimizer.param_groups[0][name] for name in ("betas", "eps", "weight_decay")}
    assert group == {"betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 1e-4}
    assert [ttm_torch.learning_rate(state.scheduler.config, step) for step in (100, 1100)] == [0.002, 0.0001]


def test_folders():
    for name in "ttm_jax ttm_torch parity configs docs results tests".split():
        assert any((ROOT / name).iterdir())


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no checkout, or no git")
def test_version_control():
    shown = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=ROOT, capture_output=True, text=True)
    assert Path(shown.stdout.strip()) == ROOT
    commit = json.loads((ROOT / "results/quick/versions.json").read_text())["commit"]
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", commit)


@pytest.mark.parametrize("length", ["3x1", "3x2", "2x3"])
def test_numbers_above_100(length):
    counts = json.loads((ROOT / "results/quick/evaluation.json").read_text())["exact_match"][length]
    assert counts["total"] > 800
    assert counts["correct"] / counts["total"] > 0.8


def test_the_run_without_memory():
    """It differs from the default run in nothing else, and is worse where numbers are long."""
    runs = {run["run"]: run for run in json.loads((ROOT / "results/quick_variants.json").read_text())}
    assert runs["no-memory"]["changed"] == {"model.write": "none"}
    assert runs["no-memory"]["examples"] == runs["quick"]["examples"]
    right = {name: runs[name]["exact_match"]["3x2"]["correct"] for name in ("quick", "no-memory")}
    assert 0 < right["no-memory"] < right["quick"]
