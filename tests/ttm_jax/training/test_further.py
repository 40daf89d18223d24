"""A run that goes on for longer than it was to, and a new one that starts from the parameters of another."""

import json
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest

from tests.toy import Config, Line, LineObjective
from ttm_jax.tasks import load_config
from ttm_jax.train import main
from ttm_jax.training.checkpoint import load_params, load_state
from ttm_jax.training.checkpoint_files import LATEST, CheckpointError, find_checkpoint, saved_steps
from ttm_jax.training.config import ConfigError, later_keys
from ttm_jax.training.jax_engine import JaxEngine
from ttm_jax.training.loop import Said, Stepped, train
from ttm_jax.training.run_folder import RunFolder
from ttm_jax.training.step import make_state

CONFIG = Config()


def with_train(**values):
    return replace(CONFIG, train=replace(CONFIG.train, **values))


class Patient(Line):
    """It ends the run at its second evaluation, of however many."""

    def end_epoch(self, evaluation):
        verdict = super().end_epoch(evaluation)
        return verdict._replace(stop=evaluation is not None and self._seen <= 20)


def make_engine(config):
    return JaxEngine(LineObjective(), config.optimizer, config.train.seed, config.batch_size, num_devices=1)


def run(workdir, config=CONFIG, resume=False, stop_at=None, init=None, task=Line):
    """The events of a run of which step `stop_at` is the last."""
    events = []

    def stop():
        return any(isinstance(event, Stepped) and event.step == stop_at for event in events)

    for event in train(config, task(config), make_engine(config), workdir, resume, stop, init):
        events.append(event)
    return events


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """Drawing takes longer than training here."""
    monkeypatch.setattr(RunFolder, "draw_curves", lambda *arguments: None)


def left(workdir):
    """The state that a run left, to the bit, and its metrics but for the clock."""
    like = make_state(LineObjective(), CONFIG.optimizer, jax.random.key(0), CONFIG.batch_size)
    state = load_state(find_checkpoint(workdir, (LATEST,)), like)
    state = state.replace(key=jax.random.key_data(state.key))
    metrics = [{k: v for k, v in record.items() if k != "seconds"} for record in RunFolder(workdir).records()]
    return [np.asarray(x).tobytes() for x in jax.tree.leaves(state)], metrics


def kernel(path):
    return np.asarray(load_params(find_checkpoint(path), LineObjective())["kernel"])


class TestLonger:
    def test_it_is_the_run_that_was_to_be_as_long_from_the_start(self, tmp_path):
        longer = with_train(max_epochs=8, eval_batch_size=3)
        run(tmp_path / "whole", with_train(max_epochs=8))
        assert run(tmp_path / "parts")[-1].how == "finished"
        assert run(tmp_path / "parts", longer, resume=True, stop_at=37)[-1].step == 37
        values = (tmp_path / "parts" / "config.toml").read_text()  # a later resume needs no flag
        assert "max_epochs = 8\n" in values
        assert "eval_batch_size = 3\n" in values
        assert run(tmp_path / "parts", longer, resume=True)[-1][:2] == ("finished", 40)
        assert left(tmp_path / "parts") == left(tmp_path / "whole")

    def test_no_shorter_than_what_is_done(self, tmp_path):
        run(tmp_path, stop_at=11)
        with pytest.raises(ConfigError, match=r"train.max_epochs must be at least 3, got 2: .* has done 3 epochs"):
            run(tmp_path, with_train(max_epochs=2), resume=True)
        assert run(tmp_path, with_train(max_epochs=3), resume=True)[-1][:2] == ("finished", 15)

    def test_an_early_stop_is_lifted_by_a_change(self, tmp_path):
        assert run(tmp_path, task=Patient)[-1][:2] == ("early stop", 10)
        assert run(tmp_path, resume=True, task=Patient)[-1][:2] == ("early stop", 10)
        longer = with_train(max_epochs=8)
        assert run(tmp_path, longer, resume=True, task=Patient)[-1][:2] == ("early stop", 20)
        assert run(tmp_path, with_train(max_epochs=9), resume=True, task=Patient)[-1][:2] == ("finished", 45)

    @pytest.mark.parametrize("stop_at", [3, None])
    def test_what_the_past_depends_on_is_refused_with_both_values(self, stop_at, tmp_path):
        run(tmp_path, stop_at=stop_at)
        if stop_at:
            shutil.rmtree(tmp_path / LATEST)  # as if it had been killed before the first
        other = replace(with_train(eval_every_epochs=3), optimizer=replace(CONFIG.optimizer, max_grad_norm=None))
        with pytest.raises(
            ConfigError, match=r"another config: .*max_grad_norm was 1.0, got none, .*epochs was 2, got 3$"
        ):
            run(tmp_path, other, resume=True)
        assert "eval_every_epochs = 2\n" in (tmp_path / "config.toml").read_text()

    def test_the_keys_of_a_shipped_config(self):
        keys = "max_epochs eval_batch_size num_examples patience_epochs".split()
        assert sorted(later_keys(load_config("default"))) == sorted(f"train.{key}" for key in keys)


OTHER = replace(with_train(seed=5), optimizer=replace(CONFIG.optimizer, learning_rate=1e-4))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    path = tmp_path_factory.mktemp("source")
    run(path)
    return path


class TestInit:
    def test_parameters_are_those_and_all_else_is_fresh(self, source, tmp_path):
        """Little is learnt in a step of a small rate; moments, batches and dropout are those of a run that starts."""
        events = run(tmp_path / "new", OTHER, stop_at=1, init=source)
        assert any(isinstance(event, Said) and str(find_checkpoint(source)) in event.text for event in events)
        assert saved_steps(tmp_path / "new", LATEST) == [1]
        np.testing.assert_allclose(kernel(tmp_path / "new"), kernel(source), atol=1e-3)
        run(tmp_path / "fresh", OTHER, stop_at=1)
        assert np.abs(kernel(tmp_path / "fresh") - kernel(source)).max() > 0.1
        engine = make_engine(OTHER)
        started, fresh = (engine.start(engine.plans[0], init) for init in (find_checkpoint(source), None))
        assert np.array_equal(started.params["kernel"], kernel(source))
        assert np.array_equal(jax.random.key_data(started.key), jax.random.key_data(fresh.key))
        for name in ("step", "opt_state", "carry"):
            jax.tree.map(np.testing.assert_array_equal, getattr(started, name), getattr(fresh, name))

    def test_it_resumes_without_the_flag(self, source, tmp_path):
        """Also where it was killed before its first checkpoint; its folder and checkpoints say where it came from."""
        run(tmp_path / "whole", OTHER, init=source)
        events = train(OTHER, Line(OTHER), make_engine(OTHER), tmp_path / "parts", init=source)
        next(event for event in events if isinstance(event, Stepped))
        del events
        for stop in (3, 14, None):
            run(tmp_path / "parts", OTHER, resume=True, stop_at=stop)
        assert left(tmp_path / "parts") == left(tmp_path / "whole")
        init = str(find_checkpoint(source))
        assert json.loads((tmp_path / "parts/versions.json").read_text())["init"] == init
        meta = json.loads((find_checkpoint(tmp_path / "parts") / "meta/metadata").read_text())
        assert meta["provenance"]["init"] == init

    def test_a_run_that_has_checkpoints_does_not_need_its_source(self, source, tmp_path):
        copy = shutil.copytree(source, tmp_path / "copy")
        run(tmp_path / "new", OTHER, stop_at=3, init=copy)
        shutil.rmtree(copy)
        assert run(tmp_path / "new", OTHER, resume=True)[-1].how == "finished"

    def test_parameters_that_do_not_fit_are_named_and_nothing_is_begun(self, tmp_path):
        """Five digits' are not a line's: what is missing, and what there is that is not wanted."""
        with pytest.raises(
            CheckpointError, match=r"carry_head/bias is float32\[\d+\], nothing wanted; .*and \d+ more$"
        ):
            run(tmp_path / "new", init="five_digits")
        with pytest.raises(CheckpointError, match=r"nowhere: no such file"):
            run(tmp_path / "new", init=tmp_path / "nowhere")
        assert not (tmp_path / "new").exists()

    def test_the_flag_goes_to_a_new_run_alone(self, call_command, source, tmp_path, signal_handlers):
        code, out, err = call_command(main, "--init", source, "--resume", "--workdir", tmp_path)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "--init" in err
        code, out, err = call_command(main, "--init", "six_digits", "--workdir", tmp_path / "new")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "six_digits" in err
        assert not (tmp_path / "new").exists()
