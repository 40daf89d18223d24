"""The checklist's conditions on functions, steps, files and results that are no expressions."""

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
from ttm_jax.tasks import config_from_dict
from ttm_jax.training.config import changed_keys
from ttm_torch.machine import nn
from ttm_torch.multiplication.objective import create_state

ROOT = Path(__file__).parents[2]
SMALL = ttm_torch.ModelConfig(memory_size=6, process_size=4, num_layers=1, mlp_dim=32)


@pytest.fixture(scope="module")
def embeddings():
    return nn.Embedding(13, 128, embedding_init=nn.initializers.normal(stddev=0.01)), nn.Embedding(12, 128)


def test_token_embedding(embeddings):
    token_embed, _ = embeddings
    assert token_embed(torch.tensor([1, 2, 3])).shape == (3, 128)
    assert token_embed.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_position_embedding(embeddings):
    _, pos_embed = embeddings
    assert pos_embed(torch.tensor([0, 1, 2])).shape == (3, 128)
    assert pos_embed.weight.requires_grad


def test_sum_of_embeddings(embeddings):
    token_embed, pos_embed = embeddings
    assert (token_embed(torch.tensor([1, 2, 3])) + pos_embed(torch.tensor([0, 1, 2]))).shape == (3, 128)
    model, inputs = ttm_torch.TTMModel(SMALL), torch.tensor([[1, 2, 10, 3, 11, 12, 12, 12, 12, 12, 12, 12]])
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
        for module in (ttm_torch.machine.summarize, ttm_torch.machine.memory)
        for name, value in vars(module).items()
        if inspect.isfunction(value) and "params" in inspect.signature(value).parameters and name != "apply"
    }
    assert found == set(FREE_FUNCTIONS)


def test_eos_loss_has_the_factor_0_1():
    targets = torch.as_tensor(ttm_torch.MultiplicationDataset(batch_size=4).generate_batch()[1])
    logits, mask = 4 * torch.randn(4, 12, 13), ttm_torch.create_target_mask(targets)
    eos_targets = ttm_torch.create_eos_target(ttm_torch.find_eos_positions(targets), 12)
    eos_loss = ttm_torch.compute_eos_bce(ttm_torch.extract_eos_probs(logits), eos_targets, mask)
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

    @pytest.mark.parametrize("max_grad_norm", [None, 1.0, 0.1])
    def test_large_gradients_are_clipped(self, small, max_grad_norm):
        model, batch, optimizer, scheduler = small
        with torch.no_grad():
            model.token_embed.weight.mul_(1e-3)  # what LayerNorm divides by
        ttm_torch.train_step(model, batch, optimizer, scheduler, max_grad_norm=max_grad_norm)
        norm = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
        assert norm > 1.5 if max_grad_norm is None else norm == pytest.approx(max_grad_norm, rel=1e-5)

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

    def test_predictions(self, small):
        """Of a model whose head writes EOS at every other place or so, and digits after it."""
        model, batch, _, _ = small
        inputs = torch.as_tensor(batch[0])
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.mul_(3.0)
            logits = model.eval().raw_logits(inputs)
            model.head.eos_head.bias += (logits[..., :11].amax(dim=-1) - logits[..., 11]).median()
        predictions = ttm_torch.eval_step(model, batch)["predictions"]
        assert torch.equal(predictions, model(inputs).argmax(dim=-1))
        assert not torch.equal(predictions, model.raw_logits(inputs).argmax(dim=-1))

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
    for name in "ttm_jax ttm_torch parity configs checkpoints docs results tests".split():
        assert any((ROOT / name).iterdir())


@pytest.mark.skipif(shutil.which("git") is None or not (ROOT / ".git").exists(), reason="no checkout, or no git")
def test_version_control():
    shown = subprocess.run(["git", "rev-parse", "--show-toplevel"], cwd=ROOT, capture_output=True, text=True)
    assert Path(shown.stdout.strip()) == ROOT
    commit = json.loads((ROOT / "results/quick/versions.json").read_text())["commit"]
    assert re.fullmatch(r"[0-9a-f]{40}(\+changes)?", commit)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("length", ["3x1", "3x2", "2x3"])
def test_numbers_above_100(length, seed):
    counts = json.loads((ROOT / f"results/default/seed-{seed}.json").read_text())["exact_match"][length]
    assert counts["total"] > 800
    assert counts["correct"] / counts["total"] > 0.8


@pytest.mark.parametrize("seed", range(3))
def test_the_run_without_memory(seed):
    """It differs from the default run in nothing else, and is worse where numbers are long."""
    runs = {
        name: json.loads((ROOT / f"results/default/{name}-{seed}.json").read_text()) for name in ("seed", "no-memory")
    }
    configs = {name: config_from_dict(run["training"]["config"]) for name, run in runs.items()}
    assert changed_keys(configs["seed"], configs["no-memory"]) == ["model.write"]
    assert configs["no-memory"].model.write == "none"
    right = {name: run["exact_match"]["3x2"]["correct"] for name, run in runs.items()}
    assert 0 < right["no-memory"] < right["seed"]
