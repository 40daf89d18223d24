"""A whole run of both twins from the same weights: the same batches, records, evaluations, stages and answers."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
import torch

import ttm_jax
from parity.compare import largest_difference
from parity.weights import load, to_jax, to_torch
from ttm_jax.tasks import make_objective, make_task
from ttm_jax.training.checkpoint_files import find_checkpoint
from ttm_jax.training.config import override
from ttm_jax.training.jax_engine import JaxEngine
from ttm_jax.training.loop import train
from ttm_jax.training.run_folder import RunFolder
from ttm_torch.training.torch_engine import TorchEngine


class Run(NamedTuple):
    """The folder of a run, what it told, and the state it ended with."""

    path: Path
    display: Any
    state: Any


def trained(engine, config, path, display):
    """A run of an engine, whose last state is kept."""

    class Watched(type(engine)):
        def step(self, state, arrays, plan):
            self.newest, metrics = super().step(state, arrays, plan)
            return self.newest, metrics

    engine.__class__ = Watched
    for event in train(config, make_task(config), engine, path):
        display.show(event)
    assert event.how == "finished"
    return Run(path, display, engine.newest)


@pytest.fixture(scope="module")
def runs(tiny_config, run_display, tmp_path_factory):
    """Both twins, after forty steps of Muon through two stages from the same weights."""
    changes = {"optimizer.name": "muon", "model.dropout_rate": "0.0"}
    config = override(tiny_config, {**changes, "model.dtype": "float64", "model.param_dtype": "float64"})
    folder = tmp_path_factory.mktemp("twins")
    shared = config.optimizer, config.train.seed, config.data.batch_size
    with jax.enable_x64(True):
        engine = JaxEngine(make_objective(config), *shared)
        twin = TorchEngine(make_objective(config, "ttm_torch"), *shared, torch.device("cpu"))
        params, start = engine.start(engine.plans[0]).params, twin.start

        def start_with_the_same_weights(plan, init=None):
            state = start(plan, init)
            state.model.load_state_dict(to_torch(params))
            return state

        twin.start = start_with_the_same_weights
        yield (
            config,
            trained(engine, config, folder / "jax", run_display()),
            trained(twin, config, folder / "torch", run_display()),
        )


def test_the_records_are_the_same(runs, without_seconds):
    """Losses to 1e-6: Optax computes rates and bias corrections in float32."""
    theirs, ours = (RunFolder(run.path).records() for run in runs[1:])
    assert len(theirs) == 16
    for jax_record, record in zip(theirs, ours, strict=True):
        assert list(record) == list(jax_record)
        for name in ("loss", "grad_norm", "learning_rate"):
            if name in record:
                assert record.pop(name) == pytest.approx(jax_record.pop(name), rel=1e-6)
        assert without_seconds(record) == without_seconds(jax_record)
    assert [record["stage"] for record in ours if record["kind"] == "eval"] == [0, 0, 1, 1]


def test_the_examples_are_the_same(runs):
    theirs, ours = (run.display for run in runs[1:])
    assert [examples for _, examples in ours.evaluations] == [examples for _, examples in theirs.evaluations]
    assert ours.messages == theirs.messages


def test_a_checkpoint_of_the_twin_goes_to_jax(runs):
    config, theirs, twin = runs
    path = find_checkpoint(twin.path, ("checkpoints",)) / "params" / "model.safetensors"
    with jax.enable_x64(True):
        params = to_jax(load(path), theirs.state.params)
        trained = jax.tree.map(np.asarray, theirs.state.params)
        initial = jax.tree.map(np.asarray, ttm_jax.create_state(config).params)
    flat, flat_trained, flat_initial = (
        {jax.tree_util.keystr(name): leaf for name, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, trained, initial)
    )
    assert largest_difference(flat, flat_trained).value <= 1e-5
    assert largest_difference(flat_initial, flat_trained).value > 0.1
