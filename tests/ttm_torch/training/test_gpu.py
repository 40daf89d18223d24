"""The same training on CUDA as on the CPU. Run with `pytest -m gpu` where there is a device."""

import pytest
import torch

import ttm_torch
from ttm_jax.tasks import make_task
from ttm_jax.training.checkpoint_files import LATEST, find_checkpoint
from ttm_jax.training.config import override
from ttm_torch.multiplication.objective import create_state
from ttm_torch.training.checkpoint import load_state
from ttm_torch.training.command import start
from ttm_torch.training.device import device_name

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("name", ["adam", "muon"])
def test_the_first_training_steps(name, tiny_config):
    config = override(tiny_config, {"model.dropout_rate": "0.0", "optimizer.name": name})
    dataset, losses = ttm_torch.MultiplicationDataset(8), []
    for device in ("cpu", "cuda"):
        state = create_state(config, device)
        for step in range(3):
            loss = ttm_torch.train_step(state.model, dataset.batch(0, step)[:3], state.optimizer, state.scheduler)
        losses.append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_run_stops_goes_on_and_is_used_on_the_cpu(tiny_config, tmp_path, display):
    config = override(tiny_config, {"model.dtype": "bfloat16", "optimizer.name": "muon"})
    first = start(config, make_task(config), tmp_path, stop=lambda: display.steps[-1] >= 13)
    assert next(first).model.endswith(f"parameters on {device_name(torch.device('cuda'))}")
    for run, end in ((first, "interrupted"), (start(config, make_task(config), tmp_path, True), "finished")):
        for event in run:
            display.show(event)
        assert event.how == end
    assert display.records[-1]["loss"] < display.records[0]["loss"]
    assert load_state(find_checkpoint(tmp_path, (LATEST,)), create_state(config)).step == 40
    multipliers = [ttm_torch.load(tmp_path, device) for device in ("cpu", "cuda")]
    assert all(len(multiplier.multiply([2, 7], [3, 8])) == 2 for multiplier in multipliers)


def test_random_numbers_on_the_gpu_are_left_where_they_are(tiny_config):
    tokens = torch.randn(2, 5, 16, device="cuda")
    before = torch.cuda.get_rng_state()
    ttm_torch.token_summarize(tokens, k=3)
    model = create_state(tiny_config, "cuda").model
    ttm_torch.measure_memory(model, (4, 12))
    ttm_torch.eval_step(model, ttm_torch.MultiplicationDataset(8).generate_batch())
    assert torch.equal(torch.cuda.get_rng_state(), before)
