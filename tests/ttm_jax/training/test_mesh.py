"""Steps whose batch several devices divide between them: the same training to rounding, wherever it runs."""

import json
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

import ttm_jax
from ttm_jax.measure.cost import machine_train_step
from ttm_jax.multiplication.objective import create_state, loss_fn
from ttm_jax.tasks import make_task
from ttm_jax.train import main
from ttm_jax.training.checkpoint import load_state
from ttm_jax.training.checkpoint_files import BEST, LATEST, find_checkpoint
from ttm_jax.training.config import ConfigError, config_to_toml, override
from ttm_jax.training.jax_command import start
from ttm_jax.training.loop import Ended
from ttm_jax.training.mesh import place
from ttm_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("signal_handlers")


@pytest.fixture(scope="module")
def train_on():
    """`train_on(number, display, config, workdir, resume, stop_at)` trains on so many devices; how it ended."""

    def run(number, display, config, workdir, resume=False, stop_at=None):
        def stop():
            return stop_at in display.steps[-1:]

        for event in start(config, make_task(config), workdir, resume, stop, num_devices=number):
            display.show(event)
        assert isinstance(event, Ended)
        return event.how

    return run


def compare(one, other, tolerance):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_divided_step_is_the_whole_step(exact_config, batch, micro_batches):
    with jax.enable_x64(True):
        whole, expected = train_step(create_state(exact_config), batch)
        placement = place(8, num_devices=2)
        state, divided = placement.replicate(create_state(exact_config)), placement.divide(batch)
        assert [shard.data.shape[0] for shard in divided["inputs"].addressable_shards] == [4, 4]
        state, metrics = train_step(state, divided, micro_batches=micro_batches, mesh=placement.step_mesh)
        assert len(state.step.devices()) == 2
        compare(metrics, expected, 1e-12)
        compare((state.params, state.opt_state), (whole.params, whole.opt_state), 1e-12)


def test_each_device_drops_other_units(tiny_config, batch):
    """Two equal halves of a batch: were the same units dropped in both, the loss would be that of one half."""
    half = {name: array[:4] for name, array in batch.items()}
    twice = {name: np.concatenate([array, array]) for name, array in half.items()}
    placement = place(8, num_devices=2)
    state, divided = placement.replicate(create_state(tiny_config)), placement.divide(twice)
    _, metrics = train_step(state, divided, mesh=placement.step_mesh)
    fresh = create_state(tiny_config)
    key = jax.random.fold_in(fresh.key, 0)
    loss = jax.jit(lambda i: loss_fn(fresh.params, fresh.objective.model, half, jax.random.fold_in(key, i))[0].mean)
    of_one, of_other = loss(0), loss(1)
    assert of_one != of_other
    assert float(metrics["loss"]) == pytest.approx(float(of_one + of_other) / 2, rel=1e-5)


def test_a_divided_step_of_a_machine_is_the_whole_step(normal):
    machine = ttm_jax.TokenTuringMachine(4, 2, num_layers=1, mlp_dim=16, num_heads=2)
    tokens_BxTxNxD = normal(0, 4, 3, 2, 8)
    optimizer = optax.sgd(0.1)
    variables = jax.jit(machine.init)(jax.random.key(0), tokens_BxTxNxD)
    state = variables, optimizer.init(variables)
    whole = jax.jit(machine_train_step(machine, optimizer))(state, tokens_BxTxNxD)
    placement = place(4, num_devices=2)
    divided = jax.jit(machine_train_step(machine, optimizer, placement.step_mesh))(
        placement.replicate(state), placement.divide(tokens_BxTxNxD)
    )
    compare(divided, whole, 1e-5)


class TestPlace:
    def test_the_processor_is_divided_where_each_device_has_eight_examples(self):
        assert [len(place(size).devices) for size in (1, 8, 15, 16, 17, 64)] == [1, 1, 1, 2, 1, 2]
        assert [place(size).micro_batches for size in (15, 16, 48, 64, 96)] == [1, 1, 3, 4, 6]
        assert place(64).mesh.devices.tolist() == [[device] for device in jax.devices()[:2]]
        assert dict(place(15).mesh.shape) == {"data": 1, "model": 1}
        assert place(15).step_mesh is None

    def test_as_many_as_asked_for(self):
        assert len(place(64, num_devices=1).devices) == 1
        assert place(64, num_devices=1).micro_batches == 1
        assert len(place(2, num_devices=2).devices) == 2

    @pytest.mark.parametrize(
        ("size", "number", "message"),
        [
            (64, 3, "--devices 3: JAX sees 2 of the kind cpu"),
            (9, 2, "--devices 2 does not divide data.batch_size 9"),
        ],
    )
    def test_what_cannot_be(self, size, number, message):
        with pytest.raises(ConfigError, match=message):
            place(size, num_devices=number)


@pytest.mark.slow  # test_toy.py has the same of a smaller task
def test_a_run_on_two_devices_is_that_on_one(exact_config, tmp_path, run_display, train_on):
    """With evaluations and checkpoints; and begun on two, it goes on with one."""
    ends, exact_config = {}, override(exact_config, {"train.max_epochs": "4"})
    with jax.enable_x64(True):
        for number in (1, 2):
            assert train_on(number, run_display(), exact_config, tmp_path / str(number)) == "finished"
        train_on(2, run_display(), exact_config, tmp_path / "2 then 1", stop_at=13)
        assert train_on(1, run_display(), exact_config, tmp_path / "2 then 1", resume=True) == "finished"
        for name in ("1", "2", "2 then 1"):
            state = load_state(find_checkpoint(tmp_path / name, (LATEST,)), create_state(exact_config))
            ends[name] = state.params, state.opt_state
        assert len(jax.tree.leaves(ends["2"])[0].devices()) == 1
        compare(ends["2"], ends["1"], 1e-9)
        compare(ends["2 then 1"], ends["1"], 1e-9)
        records = [json.loads(line) for line in (tmp_path / "2" / "metrics.jsonl").read_text().splitlines()]
        expected = [json.loads(line) for line in (tmp_path / "1" / "metrics.jsonl").read_text().splitlines()]
        assert [r.get("exact_match") for r in records] == [r.get("exact_match") for r in expected]
    versions = json.loads((tmp_path / "2" / "versions.json").read_text())
    assert versions["devices"] == 2
    assert find_checkpoint(tmp_path / "2", (BEST,)).exists()


def test_two_devices_resume_to_the_bit(tiny_config, tmp_path, run_display, train_on):
    tiny_config = override(tiny_config, {"train.max_epochs": "4"})
    train_on(2, run_display(), tiny_config, tmp_path / "whole")
    train_on(2, run_display(), tiny_config, tmp_path / "halves", stop_at=13)
    train_on(2, run_display(), tiny_config, tmp_path / "halves", resume=True)
    whole, halves = (
        load_state(find_checkpoint(tmp_path / name, (LATEST,)), create_state(tiny_config)).params
        for name in ("whole", "halves")
    )
    assert [np.asarray(x).tobytes() for x in jax.tree.leaves(whole)] == [
        np.asarray(x).tobytes() for x in jax.tree.leaves(halves)
    ]


def test_nothing_moves_between_devices_that_was_not_asked_to(tiny_config, tmp_path, display):
    events = start(tiny_config, make_task(tiny_config), tmp_path, num_devices=2)
    display.show(next(events))
    with jax.transfer_guard("disallow"):
        assert [event.how for event in events if isinstance(event, Ended)] == ["finished"]


def run_command(environment, config_file, workdir, *flags):
    command = [sys.executable, "-m", "ttm_jax.train", "--config", config_file, "--workdir", workdir, *flags]
    return subprocess.run(map(str, command), env=environment, capture_output=True, text=True, timeout=300)


class TestCommand:
    def test_devices_are_made_of_the_processor(self, tiny_config, tmp_path, environment):
        config_file = tmp_path / "short.toml"
        config_file.write_text(config_to_toml(override(tiny_config, {"train.max_epochs": "2"})))
        done = run_command(environment, config_file, tmp_path / "run", "--devices", 4)
        assert done.returncode == 0, done.stderr
        assert "parameters on 4 x cpu" in done.stdout
        assert ttm_jax.load(tmp_path / "run").multiply([2], [3])

    def test_what_cannot_be_is_one_line(self, config_file, tmp_path, call_command):
        for flags, line in [
            (("--devices", "3"), "--devices 3: JAX sees 2 of the kind cpu"),
            (("--devices", "0"), "argument --devices: must be a positive integer, got '0'"),
        ]:
            code, out, err = call_command(main, "--config", config_file, "--workdir", tmp_path / "run", *flags)
            assert (code, out) == (2, "")
            assert line in err.strip().splitlines()[-1]
