"""A whole run of both twins from the same weights: the same batches, records, evaluations, stages and answers."""

import jax
import numpy as np
import pytest

import ttm_jax.train
import ttm_torch
import ttm_torch.train
from parity.compare import largest_difference
from parity.weights import load, to_jax, to_torch
from ttm_jax.training.config import override
from ttm_jax.training.run_folder import RunFolder
from ttm_torch.training.checkpoint import find_checkpoint


@pytest.fixture(scope="module")
def runs(tiny_config, run_display, tmp_path_factory):
    """The trainers of both, after forty steps of Muon through two stages, and what they told."""
    changes = {"optimizer.name": "muon", "model.dropout_rate": "0.0"}
    config = override(tiny_config, {**changes, "model.dtype": "float64", "model.param_dtype": "float64"})
    folder = tmp_path_factory.mktemp("twins")
    with jax.enable_x64(True):
        trainer = ttm_jax.train.Trainer(config, folder / "jax")
        twin = ttm_torch.train.Trainer(config, folder / "torch", device="cpu")
        twin.state.model.load_state_dict(to_torch(trainer.state.params))
        displays = run_display(), run_display()
        assert [t.run(display) for t, display in zip((trainer, twin), displays, strict=True)] == ["finished"] * 2
        yield trainer, twin, displays


def test_the_records_are_the_same(runs, without_seconds):
    """Losses to 1e-6: Optax computes rates and bias corrections in float32."""
    theirs, ours = (RunFolder(trainer.folder.path).records() for trainer in runs[:2])
    assert len(theirs) == 16
    for jax_record, record in zip(theirs, ours, strict=True):
        assert list(record) == list(jax_record)
        for name in ("loss", "grad_norm", "learning_rate"):
            if name in record:
                assert record.pop(name) == pytest.approx(jax_record.pop(name), rel=1e-6)
        assert without_seconds(record) == without_seconds(jax_record)
    assert [record["stage"] for record in ours if record["kind"] == "eval"] == [0, 0, 1, 1]


def test_the_examples_are_the_same(runs):
    theirs, ours = ([examples for _, examples in display.evaluations] for display in runs[2])
    assert ours == theirs
    assert runs[2][0].messages == runs[2][1].messages


def test_a_checkpoint_of_the_twin_goes_to_jax(runs):
    trainer, twin, _ = runs
    path = find_checkpoint(twin.folder.path, ("checkpoints",)) / "params" / "model.safetensors"
    with jax.enable_x64(True):
        params = to_jax(load(path), trainer.state.params)
        trained = jax.tree.map(np.asarray, trainer.state.params)
        initial = jax.tree.map(np.asarray, ttm_jax.create_state(trainer.config).params)
    flat, flat_trained, flat_initial = (
        {jax.tree_util.keystr(name): leaf for name, leaf in jax.tree_util.tree_leaves_with_path(tree)}
        for tree in (params, trained, initial)
    )
    assert largest_difference(flat, flat_trained).value <= 1e-5
    assert largest_difference(flat_initial, flat_trained).value > 0.1
