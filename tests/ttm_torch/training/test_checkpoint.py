"""Checkpoints of the twin: to the bit, complete or absent, no code in them, and one clear error for all else."""

import errno
import json
import os
import pickle
import shutil
from functools import partial

import numpy as np
import pytest
import torch

import ttm_torch
from ttm_jax.training.checkpoint_files import BEST, LATEST, CheckpointError, find_checkpoint, saved_steps
from ttm_jax.training.config import config_to_dict, override
from ttm_torch.evaluate import main
from ttm_torch.multiplication.objective import create_model, create_state
from ttm_torch.training.checkpoint import CheckpointFolder, load_meta, load_model, load_state


@pytest.fixture
def state(tiny_config):
    """A state after three steps of Muon."""
    state = create_state(override(tiny_config, {"optimizer.name": "muon"}))
    for step in range(3):
        batch = ttm_torch.MultiplicationDataset(4).batch(0, step)[:3]
        ttm_torch.train_step(state.model, batch, state.optimizer, state.scheduler)
    return state


@pytest.fixture
def save(tiny_config, tmp_path):
    """`save(state, kind, **meta)` gives the checkpoint's path."""

    def write(state, kind=LATEST, **meta):
        return CheckpointFolder(tmp_path, kind).save(state, {"config": config_to_dict(tiny_config), **meta})

    return write


@pytest.fixture
def checkpoint(tiny_run, tmp_path):
    """A copy of a checkpoint of the tiny run, to be damaged."""
    source = find_checkpoint(tiny_run.path, (LATEST,))
    return shutil.copytree(source, tmp_path / source.name)


def test_a_state_comes_back_to_the_bit(state, save, tiny_config, bits):
    config = override(tiny_config, {"optimizer.name": "muon"})
    path = save(state, progress={"loss": 0.1 + 0.2})
    assert path.name == "3"
    loaded = load_state(path, create_state(config))
    assert loaded.step == 3
    for part, got in zip(
        (state.model, state.optimizer, state.scheduler),
        (loaded.model, loaded.optimizer, loaded.scheduler),
        strict=True,
    ):
        assert bits(dict(got.state_dict())) == bits(dict(part.state_dict()))
    assert bits(dict(load_model(path, create_model(config)).state_dict())) == bits(dict(state.model.state_dict()))
    assert load_meta(path)[0] == tiny_config
    assert load_meta(path)[1]["progress"] == {"loss": 0.1 + 0.2}


def test_the_latest_two_and_the_best_are_kept(state, save, tmp_path):
    for step in (3, 5, 8):
        state.scheduler.last_epoch = step
        save(state), save(state, BEST)
    assert (saved_steps(tmp_path, LATEST), saved_steps(tmp_path, BEST)) == ([5, 8], [8])
    assert not list(tmp_path.rglob("*.tmp"))
    assert (tmp_path / LATEST / "8" / "training").is_dir()
    assert not (tmp_path / BEST / "8" / "training").exists()


def test_a_checkpoint_that_is_there_is_not_written_again(state, save):
    path = save(state, note="first")
    save(state, note="second")
    assert load_meta(path)[1]["note"] == "first"


def test_what_a_kill_left_is_removed(state, save, tmp_path):
    (tmp_path / LATEST / "7.tmp" / "params").mkdir(parents=True)
    save(state)
    assert [path.name for path in (tmp_path / LATEST).iterdir()] == ["3"]


@pytest.mark.parametrize("name", ["[0,9]", "win\\run", os.fsdecode(b"\xff")])
def test_any_path_that_the_file_system_takes(name, state, tiny_config, tmp_path, bits):
    path = CheckpointFolder(tmp_path / name, LATEST).save(state, {"config": config_to_dict(tiny_config)})
    loaded = load_state(path, create_state(override(tiny_config, {"optimizer.name": "muon"})))
    assert bits(dict(loaded.model.state_dict())) == bits(dict(state.model.state_dict()))


def test_a_save_that_fails_leaves_what_there_was(state, save, tmp_path, small_files):
    save(state)
    state.scheduler.last_epoch, state.carry = 5, torch.arange(1 << 19)
    with (
        small_files(1 << 20),
        pytest.raises(CheckpointError, match="checkpoints/5: cannot be written: File too large$"),
    ):
        save(state)
    assert [path.name for path in (tmp_path / LATEST).iterdir()] == ["3"]


def test_loading_leaves_the_random_numbers_alone(tiny_run):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    ttm_torch.load(tiny_run.path)
    assert torch.equal(torch.get_rng_state(), before)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_is_not_run(write, checkpoint, tiny_config, tmp_path):
    (checkpoint / "checksums.json").unlink()
    write({"optimizer": Bomb(tmp_path / "ran")}, checkpoint / "training" / "optimizer.pt")
    with pytest.raises(CheckpointError, match="training/ is missing or damaged"):
        load_state(checkpoint, create_state(tiny_config))
    assert not (tmp_path / "ran").exists()


def load_all(path, config):
    load_meta(path)
    load_state(path, create_state(config))


@pytest.mark.parametrize("name", ["params/model.safetensors", "training/optimizer.pt", "meta/metadata"])
@pytest.mark.parametrize("with_checksums", [True, False])
def test_a_truncated_file_is_one_error(name, with_checksums, checkpoint, tiny_config):
    content = (checkpoint / name).read_bytes()
    (checkpoint / name).write_bytes(content[: len(content) // 2])
    if not with_checksums:
        (checkpoint / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match=f"^checkpoint {checkpoint}: {name.split('/')[0]}/.* damaged") as error:
        load_all(checkpoint, tiny_config)
    assert "\n" not in str(error.value)


def test_what_the_system_does_not_let_be_read_is_not_called_damaged(checkpoint, tiny_config, no_more_files):
    for load in (load_meta, lambda path: load_model(path, create_model(tiny_config))):
        with no_more_files(), pytest.raises(CheckpointError) as found:
            load(checkpoint)
        assert os.strerror(errno.EMFILE) in str(found.value)
        assert "damaged" not in str(found.value)
        assert "deleted" not in str(found.value)


@pytest.mark.parametrize(
    ("error", "raised"),
    [(MemoryError(), MemoryError), (OSError(errno.EACCES, "no"), CheckpointError), (RuntimeError(), CheckpointError)],
)
def test_a_whole_checkpoint_is_not_called_damaged(error, raised, checkpoint, tiny_config, monkeypatch):
    def load(*arguments, **options):
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(raised) as found:
        load_state(checkpoint, create_state(tiny_config))
    assert "damaged" not in str(found.value)


@pytest.mark.parametrize("name", ["params/model.safetensors", "training/optimizer.pt", "meta/metadata"])
def test_a_missing_file_is_one_error(name, checkpoint, tiny_config):
    (checkpoint / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing$"):
        load_all(checkpoint, tiny_config)


def test_another_model_is_named_by_a_parameter(checkpoint, tiny_config):
    with pytest.raises(CheckpointError, match=r"params/ is of another model: carry_head.weight is float32\[45, 16\], "):
        load_model(checkpoint, create_model(override(tiny_config, {"model.width": "32"})))
    with pytest.raises(CheckpointError, match=r"carry_head.bias is float32\[45\], nothing wanted; carry_head.weight"):
        load_model(checkpoint, create_model(override(tiny_config, {"model.carry_head": "false"})))


def test_the_optimiser_state_of_another_optimiser_is_refused(checkpoint, tiny_config):
    with pytest.raises(CheckpointError, match="training/ is of another optimiser"):
        load_state(checkpoint, create_state(override(tiny_config, {"optimizer.name": "muon"})))


def test_the_best_checkpoint_is_not_gone_on_from(tiny_run, tiny_config):
    with pytest.raises(CheckpointError, match="has no training/ to go on from$"):
        load_state(find_checkpoint(tiny_run.path, (BEST,)), create_state(tiny_config))


def test_a_checkpoint_of_jax_is_told_apart(checkpoint):
    (checkpoint / "checksums.json").unlink()
    (checkpoint / "meta" / "metadata").write_text(json.dumps({"format": "ttm-multiplier-1"}))
    with pytest.raises(
        CheckpointError, match="written by ttm_jax, where one of ttm_torch is wanted; python -m parity.convert "
    ):
        ttm_torch.load(checkpoint)


def test_answers_do_not_depend_on_the_batch_size(tiny_run):
    multiplier = ttm_torch.load(tiny_run.path)
    pairs = ttm_torch.held_out_pairs((2, 2), 20)
    assert multiplier.multiply(*pairs.T, batch_size=3) == multiplier.multiply(*pairs.T)
    inputs = ttm_torch.MultiplicationDataset(5).batch(0, 0).inputs
    predictions, probabilities = multiplier.predict(inputs, batch_size=2, num_steps=4)
    assert predictions.shape == probabilities.shape == (5, 4)
    np.testing.assert_array_equal(predictions, multiplier.model(torch.as_tensor(inputs)).argmax(dim=-1)[:, :4])


def test_predictions_have_no_dropout_and_leave_the_model_as_it_was(tiny_run):
    multiplier = ttm_torch.load(tiny_run.path)
    inputs = ttm_torch.MultiplicationDataset(16).batch(0, 0).inputs
    predictions, probabilities = multiplier.predict(inputs)
    multiplier.model.train()
    again = multiplier.predict(inputs)
    np.testing.assert_array_equal(again[0], predictions)
    np.testing.assert_array_equal(again[1], probabilities)
    assert multiplier.model.training


class TestEvaluate:
    @pytest.fixture
    def command(self, call_command):
        return partial(call_command, main)

    def test_json_is_one_object(self, tiny_run, command):
        code, out, err = command(tiny_run.path, "--json", "--max-digits", "2", "--pairs", "20", "--device", "cpu")
        assert (code, err) == (0, "")
        result = json.loads(out)
        assert list(result["exact_match"]) == ["1x1", "1x2", "2x1", "2x2"]
        a, b = ttm_torch.held_out_pairs((1, 1), 20).T
        products = ttm_torch.load(tiny_run.path).multiply(a, b)
        right = sum(product == x * y for product, x, y in zip(products, a, b, strict=True))
        assert result["exact_match"]["1x1"] == {"correct": right, "total": 20}
        assert result["provenance"]["torch"] == torch.__version__

    def test_no_checkpoint_is_one_line(self, tmp_path, command):
        code, out, err = command(tmp_path / "missing")
        assert (code, out) == (2, "")
        assert (
            err == f"python -m ttm_torch.evaluate: error: checkpoint {tmp_path / 'missing'}: no such file or folder\n"
        )

    def test_help_has_an_example(self, command):
        assert "example: python -m ttm_torch.evaluate runs/default-torch" in command("--help")[1]
