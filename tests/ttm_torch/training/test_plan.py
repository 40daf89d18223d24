"""Training in PyTorch where memory runs out: micro-batches whose gradients add up to those of the batch."""

import numpy as np
import pytest
import torch

from ttm_jax.training.checkpoint_files import LATEST, find_checkpoint
from ttm_torch.multiplication.objective import create_state, train_step_with_metrics
from ttm_torch.train import main
from ttm_torch.training.checkpoint import load_state
from ttm_torch.training.torch_engine import TorchEngine

pytestmark = pytest.mark.usefixtures("signal_handlers")


def weights(state):
    return {name: tensor.numpy(force=True) for name, tensor in state.model.state_dict().items()}


@pytest.mark.parametrize("micro_batches", [2, 4, 8])
def test_a_step_in_parts_is_the_same_step(task, micro_batches):
    config, batch = task
    states, told = [], []
    for parts in (1, micro_batches):
        state = create_state(config)
        told.append(train_step_with_metrics(state.model, batch, state.optimizer, state.scheduler, micro_batches=parts))
        states.append(weights(state))
    whole, metrics = told
    for name in ("loss", "grad_norm"):
        assert metrics[name].item() == pytest.approx(whole[name].item(), rel=1e-13)
    assert metrics["exact_match"].tolist() == whole["exact_match"].tolist()
    for name, expected in states[0].items():
        np.testing.assert_allclose(states[1][name], expected, rtol=1e-8, atol=1e-12)


def test_parts_that_do_not_divide_the_batch_are_refused(tiny_config, batch):
    state = create_state(tiny_config)
    with pytest.raises(ValueError, match="micro_batches must divide the batch of 8, got 3"):
        train_step_with_metrics(state.model, batch, state.optimizer, micro_batches=3)


@pytest.fixture
def memory(monkeypatch):
    """`memory(fits, first)`: from step `first` on, only so many micro-batches have memory; half a step is taken."""

    def limit(fits, first=0):
        def step(engine, state, arrays, plan):
            if state.step >= first and not fits(plan.micro_batches):
                with torch.no_grad():
                    next(state.model.parameters()).zero_()
                raise torch.OutOfMemoryError("CUDA out of memory")
            return take_step(engine, state, arrays, plan)

        monkeypatch.setattr(TorchEngine, "step", step)

    take_step = TorchEngine.step
    return limit


@pytest.fixture(scope="module")
def undisturbed(exact_config, tmp_path_factory, train):
    path = tmp_path_factory.mktemp("undisturbed")
    train(exact_config, path)
    return weights(load_state(find_checkpoint(path, (LATEST,)), create_state(exact_config)))


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (0, "step 0: going on from step 0"),
        (20, "step 20: going on from step 20"),  # the first of a stage
        (13, "step 13: going on from step 10"),
    ],
)
def test_it_goes_on_to_the_same_end(exact_config, undisturbed, memory, tmp_path, train, display, first, said):
    memory(lambda micro_batches: micro_batches == 2, first)
    assert train(exact_config, tmp_path, display=display) == "finished"
    assert f"out of memory at {said} with 2 micro-batches of 4" in display.messages
    assert len(display.messages) == 2, "and the new stage"
    state = load_state(find_checkpoint(tmp_path, (LATEST,)), create_state(exact_config))
    for name, ours in weights(state).items():
        np.testing.assert_allclose(ours, undisturbed[name], rtol=1e-6, atol=1e-10)


def test_one_line_where_nothing_is_left(config_file, memory, tmp_path, call_command):
    memory(lambda micro_batches: False)
    arguments = ["--config", config_file, "--workdir", tmp_path / "run", "--device", "cpu"]
    code, out, err = call_command(main, *arguments)
    assert code == 1
    assert out.count("out of memory at step 0: going on") == 3
    assert err.endswith(
        "with 8 micro-batches of 1: nothing is left to fall back to; no checkpoint had been written yet\n"
    )
    assert err.count("\n") == 1


def test_the_error_of_the_processor_is_known(tiny_config, tmp_path, monkeypatch, train, display):
    """PyTorch has no error type of its own for it."""

    def step(engine, state, arrays, plan):
        if plan.micro_batches == 1:
            torch.empty(2**50)
        return take_step(engine, state, arrays, plan)

    take_step = TorchEngine.step
    monkeypatch.setattr(TorchEngine, "step", step)
    train(tiny_config, tmp_path, stop_at=1, display=display)
    assert display.messages == ["out of memory at step 0: going on from step 0 with 2 micro-batches of 4"]
