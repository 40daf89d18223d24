"""While training goes on, nothing is compiled and nothing moves between host and device but batches and metrics."""

import jax
import numpy as np
import pytest

from ttm_jax.multiplication.objective import create_state
from ttm_jax.multiplication.problems import MultiplicationDataset
from ttm_jax.tasks import make_task
from ttm_jax.training.config import override
from ttm_jax.training.jax_command import start
from ttm_jax.training.loop import Stepped
from ttm_jax.training.step import train_step

TRACED, COMPILED = "/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def events():
    """What JAX has traced and compiled since the test began, as (event, function)."""
    seen = []

    def listen(event, duration, fun_name="", **_):
        if event in (TRACED, COMPILED):
            seen.append((event, fun_name.removeprefix("jit(").removesuffix(")")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_a_step_is_compiled_once_over_changing_data(tiny_config, events):
    """Other problems, lengths and mixtures: the shapes are the stage's alone."""
    config = override(tiny_config, {"model.mlp_dim": "18"})  # of which no other test has compiled anything
    dataset = MultiplicationDataset(8, stages=((0, 99),), max_digits=(2, 2))
    state = create_state(config)
    events.clear()
    for n, mixture in enumerate([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0.2, 0.3, 0.5]]):
        batch = dataset.batch(0, n, mixture)
        arrays = {"inputs": batch.inputs, "targets": batch.targets[:, :5], "carries": batch.carries[:, :5]}
        state, _ = train_step(state, arrays)
        if n == 0:
            assert [name for event, name in events if event == COMPILED] == ["train_step"]
            events.clear()
    assert events == []


@pytest.mark.slow  # test_toy.py has the same of a smaller task
def test_a_divided_step_is_compiled_once_a_stage(tiny_config, events, tmp_path, display):
    """With several devices and several micro-batches on each, and not again for a run that goes on."""
    config = override(tiny_config, {"model.mlp_dim": "22", "data.batch_size": "32"})
    for resume, stop_at, number in ((False, 23, 2), (True, 26, 0)):
        task = make_task(config)
        stop = lambda: display.steps[-1] == stop_at  # noqa: B023, E731
        run = start(config, task, tmp_path, resume, stop, num_devices=2)
        next(run)
        events.clear()
        for event in run:
            display.show(event)
        assert event.how == "interrupted"
        assert events.count((COMPILED, "train_step")) == number


@pytest.mark.slow
def test_the_loop_compiles_at_a_new_stage_and_at_its_first_evaluation_only(tiny_config, events, tmp_path, display):
    """A new stage has longer answers: it costs a compilation of the step and one of the evaluation."""
    config = override(tiny_config, {"model.mlp_dim": "24"})
    compiled, run = [], start(config, make_task(config), tmp_path)
    next(run)
    events.clear()
    for event in run:
        display.show(event)
        if isinstance(event, Stepped):
            compiled.extend((event.step, name) for event_name, name in events if event_name == COMPILED)
            events.clear()
    assert display.steps == list(range(1, 41))
    assert compiled == [
        (1, "train_step"),
        (11, "predict_step"),
        (21, "train_step"),
        (31, "predict_step"),
    ]


def test_nothing_moves_that_was_not_asked_to(tiny_config, tmp_path, display, without_seconds, tiny_run):
    """Forty steps, four evaluations, a new stage and the checkpoints of a run, to the bit as without the guard."""
    run = start(tiny_config, make_task(tiny_config), tmp_path)
    next(run)
    with jax.transfer_guard("disallow"):
        with pytest.raises(jax.errors.JaxRuntimeError, match="Disallowed host-to-device transfer"):
            jax.jit(lambda x: x + 1)(np.ones(3))
        for event in run:
            display.show(event)
    assert event.how == "finished"
    expected = tiny_run.display.records
    assert [without_seconds(record) for record in display.records] == [without_seconds(record) for record in expected]
