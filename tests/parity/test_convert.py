"""A checkpoint of one twin as one of the other: the same weights, the same answers, one line for what cannot be."""

import dataclasses
import importlib.util

import jax
import numpy as np
import pytest

import ttm_jax
import ttm_torch
from parity.convert import convert_checkpoint, main
from ttm_jax.tasks import make_objective
from ttm_jax.training import checkpoint as jax_checkpoint
from ttm_jax.training.config import config_to_dict
from ttm_torch.multiplication.objective import create_model
from ttm_torch.training import checkpoint as torch_checkpoint


@pytest.fixture
def checkpoint(tiny_config, tmp_path):
    """Makes a checkpoint of fresh JAX weights; options are of the model."""

    def make(**options):
        config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, **options))
        params = ttm_jax.create_state(config).params
        jax_checkpoint.save_params(tmp_path / "jax", params, {"config": config_to_dict(config), "examples": 7})
        return tmp_path / "jax", config, params

    return make


def test_there_and_back_is_the_same_to_the_bit(checkpoint, tmp_path):
    path, config, params = checkpoint()
    assert convert_checkpoint(path, tmp_path / "torch") == path
    convert_checkpoint(tmp_path / "torch", tmp_path / "again")
    jax.tree.map(
        np.testing.assert_array_equal, jax_checkpoint.load_params(tmp_path / "again", make_objective(config)), params
    )
    assert jax_checkpoint.load_meta(tmp_path / "again") == jax_checkpoint.load_meta(path)
    assert jax_checkpoint.load_meta(path)[1]["examples"] == 7


def test_float64_goes_too_and_is_loaded_where_jax_is_allowed_it(checkpoint, tmp_path):
    double = dict(dtype="float64", param_dtype="float64")
    with jax.enable_x64(True):
        path, config, params = checkpoint(**double)
    convert_checkpoint(path, tmp_path / "torch")
    convert_checkpoint(tmp_path / "torch", tmp_path / "again")
    with pytest.raises(ttm_jax.CheckpointError, match="again: .* float64 need JAX_ENABLE_X64=1 in the environment$"):
        ttm_jax.load(tmp_path / "again")
    with jax.enable_x64(True):
        again = jax_checkpoint.load_params(tmp_path / "again", make_objective(config))
        jax.tree.map(np.testing.assert_array_equal, again, params)
        assert {leaf.dtype for leaf in jax.tree.leaves(again)} == {np.dtype("float64")}


def test_a_run_of_the_twin_goes_to_jax(tiny_config, tmp_path):
    model = create_model(tiny_config)
    source = tmp_path / "run" / "best" / "40"
    source.parent.mkdir(parents=True)
    torch_checkpoint.save_model(source, model, {"config": config_to_dict(tiny_config)})
    assert convert_checkpoint(tmp_path / "run", tmp_path / "deep" / "jax") == source
    problems = np.random.default_rng(0).integers(0, 10, (5, 12))
    ours = ttm_torch.load(source).predict(problems)
    theirs = ttm_jax.load(tmp_path / "deep" / "jax").predict(problems)
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-5)


def test_the_shipped_checkpoint_multiplies_in_pytorch(tmp_path, capsys):
    target = tmp_path / "multiplication"
    assert main(["multiplication", str(target)]) == 0
    assert capsys.readouterr().out.endswith(f"python -m ttm_torch.evaluate {target}\n")
    assert ttm_torch.load(target).multiply([906, 47, 0], [87, 99, 5]) == [78822, 4653, 0]


@pytest.mark.parametrize("package", [ttm_jax, ttm_torch])
def test_loading_the_other_twins_says_how_to_convert(package, checkpoint, tmp_path):
    path, *_ = checkpoint()
    if package is ttm_jax:
        convert_checkpoint(path, tmp_path / "torch")
        path = tmp_path / "torch"
    with pytest.raises(
        package.CheckpointError, match=rf"one of {package.__name__} is wanted; python -m parity.convert"
    ):
        package.load(path)


def check_refused(arguments, message, capsys):
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("python -m parity.convert: error: ")
    assert err.count("\n") == 1
    assert message in err


def test_what_cannot_be_converted_gets_one_line(checkpoint, tmp_path, capsys):
    path, *_ = checkpoint()
    new = tmp_path / "new"
    check_refused([tmp_path / "missing", new], "missing: no such file or folder", capsys)
    check_refused([path, tmp_path], f"{tmp_path}: there is something already; name a new folder", capsys)
    (tmp_path / "file").touch()
    check_refused([path, tmp_path / "file" / "new"], "new: cannot be written: ", capsys)
    largest = max((path / "params").rglob("*"), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    check_refused([path, new], "is damaged: its checksum differs", capsys)
    assert not new.exists()


def test_without_safetensors(monkeypatch, tmp_path, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "safetensors" else find_spec(name))
    check_refused([tmp_path, tmp_path / "new"], "safetensors is not installed; pip install", capsys)


def test_the_baseline_is_not_pytorchs(checkpoint, tmp_path, capsys):
    path, *_ = checkpoint(kind="transformer", carry_head=False)
    check_refused([path, tmp_path / "new"], "model.kind must in PyTorch be machine", capsys)
