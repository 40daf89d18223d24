"""The trainer: a run that is stopped, killed or broken, and the command."""

import hashlib
import json
import re
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest

import ttm_jax
from ttm_jax.cli import this_python
from ttm_jax.multiplication.objective import create_state
from ttm_jax.tasks import load_config
from ttm_jax.train import main
from ttm_jax.training import command as command_module
from ttm_jax.training.checkpoint import load_meta, load_state
from ttm_jax.training.checkpoint_files import BEST, LATEST, CheckpointError, find_checkpoint, saved_steps
from ttm_jax.training.command import resolve
from ttm_jax.training.config import ConfigError, config_to_toml, override
from ttm_jax.training.jax_command import make_parser
from ttm_jax.training.jax_engine import JaxEngine
from ttm_jax.training.loop import NonFiniteLoss, Stepped
from ttm_jax.training.step import train_step

pytestmark = pytest.mark.usefixtures("signal_handlers")


def checksums(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def records(workdir, kind):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


class TestResume:
    """All that a stopped run leaves behind equals, to the bit, what `tiny_run` left."""

    def test_three_interruptions(self, tiny_run, tiny_config, tmp_path, train, snapshot):
        """At an evaluation; in the middle of an epoch and of a window; at the end of a window, past the stage."""
        for stop in (10, 13, 23):
            assert train(tiny_config, tmp_path, resume=stop > 10, stop_at=stop) == "interrupted"
            assert saved_steps(tmp_path, LATEST)[-1] == stop
        assert train(tiny_config, tmp_path, resume=True) == "finished"
        expected, got = snapshot(tiny_run.path, tiny_config), snapshot(tmp_path, tiny_config)
        got["checkpoints"] = expected["checkpoints"]  # those at the interruptions may still be there
        assert got == expected

    def test_an_interruption_after_every_step(self, tiny_run, tiny_config, tmp_path, train, snapshot):
        for stop in range(18, 28):
            train(tiny_config, tmp_path, resume=stop > 18, stop_at=stop)
        assert train(tiny_config, tmp_path, resume=True) == "finished"
        assert snapshot(tmp_path, tiny_config) == snapshot(tiny_run.path, tiny_config)

    def test_a_finished_run_stays_finished(self, tiny_config, tmp_path, train, snapshot):
        train(tiny_config, tmp_path)
        before = snapshot(tmp_path, tiny_config)
        assert train(tiny_config, tmp_path, resume=True) == "finished"
        assert snapshot(tmp_path, tiny_config) == before

    def test_nothing_is_compiled_again(self, tiny_config, tmp_path, train):
        """Two stages with answers of two lengths: two compilations, and none for a resumed run."""
        config = override(tiny_config, {"model.mlp_dim": "20"})  # of which no other test has compiled anything
        before = train_step._cache_size()
        train(config, tmp_path, stop_at=13)
        assert train_step._cache_size() == before + 1
        for stop in (18, 28):
            train(config, tmp_path, resume=True, stop_at=stop)
        assert train_step._cache_size() == before + 2

    def test_seconds_go_on(self, tiny_config, tmp_path, train, display):
        train(tiny_config, tmp_path, stop_at=10)
        checkpoint = find_checkpoint(tmp_path, (LATEST,))
        (checkpoint / "checksums.json").unlink()
        meta = json.loads((checkpoint / "meta" / "metadata").read_text())
        assert meta["progress"]["seconds"] > 0
        meta["progress"]["seconds"] = 1e6
        (checkpoint / "meta" / "metadata").write_text(json.dumps(meta))
        train(tiny_config, tmp_path, resume=True, display=display)
        assert min(record["seconds"] for record, _ in display.evaluations) > 1e6


def test_kill_during_a_save(tiny_run, tiny_config, config_file, tmp_path, kill, train, snapshot):
    run = tmp_path / "run"
    former, best = [record["step"] for record in records(tiny_run.path, "eval") if record["best"]][-2:]
    arguments = ["--config", config_file, "--workdir", run]
    for events, left in [
        ("open /checkpoints/10.tmp.orbax-checkpoint-tmp/params.orbax-checkpoint-tmp/_METADATA", []),
        ("os.rename /checkpoints/20'", [10]),  # everything is written, but under another name
        (f"shutil.rmtree /best/{former}.tmp';os.rmdir ", [best - 20, best - 10]),  # a better one is there already
    ]:
        kill("ttm_jax.train", events, *arguments)
        assert saved_steps(run, LATEST) == left
        arguments = ["--workdir", run, "--resume"]
    assert saved_steps(run, BEST) == [best]
    assert train(tiny_config, run, resume=True) == "finished"
    assert snapshot(run, tiny_config) == snapshot(tiny_run.path, tiny_config)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(number, tiny_config, tmp_path, environment):
    config_file, run = tmp_path / "endless.toml", tmp_path / "run with space"
    config_file.write_text(config_to_toml(override(tiny_config, {"train.max_epochs": "1000000"})))
    command = [sys.executable, "-m", "ttm_jax.train", "--config", config_file, "--workdir", run]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        lines = []
        while not lines or not lines[-1].startswith("evaluation at step"):
            lines.append(process.stdout.readline())
            assert lines[-1], process.stderr.read()
        process.send_signal(number)
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert err.strip() == "stopping: the step is finished and saved first (Ctrl-C again: at once)"
    assert "interrupted: " in out

    go_on = shlex.split(next(line for line in out.splitlines() if line.startswith("go on:"))[6:])
    assert go_on == [this_python(), "-m", "ttm_jax.train", "--workdir", str(run), "--resume"]
    config, workdir = resolve(make_parser(go_on[3:]).parse_args(go_on[3:]))
    assert (config, workdir) == (load_config(config_file), run)
    step = saved_steps(run, LATEST)[-1]
    checkpoint = find_checkpoint(run, (LATEST,))
    progress = load_meta(checkpoint)[1]["progress"]
    assert progress["step"] == load_state(checkpoint, create_state(config)).step == step >= 10
    assert ttm_jax.load(run).multiply([2], [3])


class TestOneRun:
    """What `tiny_run` told and wrote."""

    def test_folder(self, tiny_run):
        names = {path.name for path in tiny_run.path.iterdir()}
        assert names == {"config.toml", "versions.json", "metrics.jsonl", "curves.png", "lock", LATEST, BEST}
        assert load_config(tiny_run.path / "config.toml") == tiny_run.config
        versions = json.loads((tiny_run.path / "versions.json").read_text())
        assert versions["jax"] == jax.__version__
        assert (tiny_run.path / "curves.png").read_bytes().startswith(b"\x89PNG")

    def test_metrics(self, tiny_run):
        train, evals = (records(tiny_run.path, kind) for kind in ("train", "eval"))
        assert train == tiny_run.display.records
        assert evals == [record for record, _ in tiny_run.display.evaluations]
        assert [record["step"] for record in train] == [3, 6, 9, 12, 15, 18, 23, 26, 29, 32, 35, 38]
        assert tiny_run.display.steps == list(range(1, 41))
        for record in train:
            assert record["examples"] == 8 * record["step"]
            assert record["epoch"] == record["step"] // 5
            assert sum(record["mixture"].values()) == pytest.approx(1)
            assert all(np.isfinite(record[key]) for key in ("loss", "grad_norm", "learning_rate"))
        assert train[-1]["loss"] < train[0]["loss"]
        assert train[-1]["mixture"] != train[6]["mixture"]

    def test_evaluations(self, tiny_run):
        """Every ten steps; the longest stay of three epochs is noticed at the fourth."""
        records = [record for record, _ in tiny_run.display.evaluations]
        assert [(r["step"], r["epoch"], r["stage"]) for r in records] == [
            (10, 2, 0),
            (20, 4, 0),
            (30, 6, 1),
            (40, 8, 1),
        ]
        assert [list(r["exact_match"]) for r in records] == [["1x1"]] * 2 + [["1x1", "2x1", "2x2"]] * 2
        for record in records:
            shares = [counts["correct"] / counts["total"] for counts in record["exact_match"].values()]
            assert record["accuracy"] == pytest.approx(np.mean(shares))
        assert tiny_run.display.messages == ["stage 1: operands from 0 to 99"]

    def test_examples(self, tiny_run):
        seen = set()
        for record, examples in tiny_run.display.evaluations:
            assert len(examples) >= 3
            assert len({problem for problem, _, _ in examples}) == len(examples)
            for problem, answer, truth in examples:
                a, b = map(int, problem.removesuffix(" =").split(" × "))
                assert int(truth) == a * b
                assert answer == "no number" or int(answer) >= 0
                assert record["stage"] == 1 or ttm_jax.is_held_out(a, b) is False
                assert max(a, b) < 10 or ttm_jax.is_held_out(a, b)
            seen |= set(examples)
        assert len({problem for problem, _, _ in seen}) > 8

    def test_checkpoints(self, tiny_run):
        assert saved_steps(tiny_run.path, LATEST) == [30, 40]
        best = [record["step"] for record in records(tiny_run.path, "eval") if record["best"]]
        assert saved_steps(tiny_run.path, BEST) == best[-1:]


@pytest.fixture
def scripted(monkeypatch):
    """Training that computes nothing and evaluations that have the accuracies given."""

    def script(*accuracies):
        remaining = iter(accuracies)

        def step(engine, state, arrays, plan):
            metrics = {"loss": 1.0, "grad_norm": 1.0, "learning_rate": 0.1, "exact_match": np.zeros(8, bool)}
            return state.replace(step=state.step + 1), metrics

        def predict(engine, state, arrays, batch_size):
            predictions = arrays["targets"].copy()
            wrong = predictions.reshape(-1, 16, predictions.shape[1])[:, : round(16 * (1 - next(remaining)))]
            wrong[..., 0] = (wrong[..., 0] + 1) % 10
            return {"predictions": predictions}

        monkeypatch.setattr(JaxEngine, "step", step)
        monkeypatch.setattr(JaxEngine, "predict", predict)

    return script


class TestCurriculum:
    @pytest.fixture
    def config(self, tiny_config):
        return override(
            tiny_config,
            {
                "train.steps_per_epoch": "1",
                "train.eval_every_epochs": "1",
                "train.max_epochs": "20",
                "train.patience_epochs": "3",
                "curriculum.max_epochs_per_stage": "7",
            },
        )

    def test_five_good_evaluations_move_on_and_three_poor_ones_end(self, config, scripted, tmp_path, train, display):
        scripted(1, 1, 0.75, 1, 0.75, 0.25, 0.5, 0.5, 0.25, 0.25)
        assert train(config, tmp_path, display=display) == "early stop"
        assert [record["stage"] for record, _ in display.evaluations] == [0] * 5 + [1] * 5
        accuracies = [record["accuracy"] for record, _ in display.evaluations]
        assert accuracies == [1, 1, 0.75, 1, 0.75, 0.25, 0.5, 0.5, 0.25, 0.25]
        assert [r["step"] for r, _ in display.evaluations if r["best"]] == [1, 6, 7]
        assert [r["step"] for r, _ in display.evaluations if r.get("stop")] == [10]
        assert saved_steps(tmp_path, BEST) == [7]
        assert saved_steps(tmp_path, LATEST) == [9, 10]
        assert display.messages == ["stage 1: operands from 0 to 99"]
        assert train(config, tmp_path, resume=True) == "early stop"  # at once: nothing is scripted any more
        assert saved_steps(tmp_path, LATEST) == [9, 10]

    def test_a_stage_that_is_not_learnt_is_left_after_its_longest_stay(
        self, config, scripted, tmp_path, train, display
    ):
        scripted(*[0.5] * 7, *[1.0] * 4)
        assert train(config, tmp_path, display=display) == "early stop"
        assert [record["stage"] for record, _ in display.evaluations] == [0] * 7 + [1] * 4
        assert display.steps[-1] == 11

    def test_right_and_wrong_examples(self, config, scripted, tmp_path, train, display):
        scripted(1.0, 0.0)
        train(config, tmp_path, stop_at=2, display=display)
        right, wrong = (examples for _, examples in display.evaluations)
        assert all(answer == truth for _, answer, truth in right)
        assert not any(answer == truth for _, answer, truth in wrong)


class TestNonFiniteLoss:
    @pytest.fixture
    def run(self, tiny_config, tmp_path, train):
        train(tiny_config, tmp_path / "run", stop_at=10)
        return tmp_path / "run"

    def test_the_command_names_step_seed_and_checkpoint(self, run, monkeypatch, command):
        """Parameters that overflowed: the loss of the next step is really not a number."""

        def overflowed(engine, checkpoint, plan):
            state = load(engine, checkpoint, plan)
            return state.replace(params=jax.tree.map(lambda x: x + np.inf, state.params))

        load = JaxEngine.load
        monkeypatch.setattr(JaxEngine, "load", overflowed)
        before = checksums(run)
        code, _, err = command("--workdir", run, "--resume")
        assert code == 1
        assert checksums(run) == before
        assert "loss nan" in err
        assert "at step 10 (batch: seed 7, step 10); nothing was overwritten" in err
        assert err.endswith(f"the last good checkpoint is {run / LATEST / '10'}\n")
        assert err.count("\n") == 1

    @pytest.mark.parametrize("name", ["loss", "grad_norm"])
    @pytest.mark.parametrize("bad", [10, 12, 19])
    def test_nothing_is_saved_whichever_step_it_is(self, run, bad, name, tiny_config, monkeypatch, train):
        """The first after a resume, one within a window, and the last before an evaluation."""

        def step(engine, state, arrays, plan):
            number = int(state.step)
            state, metrics = take_step(engine, state, arrays, plan)
            return state, {**metrics, name: np.inf} if number == bad else metrics

        take_step = JaxEngine.step
        monkeypatch.setattr(JaxEngine, "step", step)
        before = {kind: checksums(run / kind) for kind in (LATEST, BEST)}
        with pytest.raises(NonFiniteLoss, match=rf"at step {bad} \(batch: seed 7, step {bad}\).*/checkpoints/10$"):
            train(tiny_config, run, resume=True)
        assert {kind: checksums(run / kind) for kind in (LATEST, BEST)} == before

    def test_before_the_first_checkpoint(self, tiny_config, tmp_path, monkeypatch, train):
        def step(engine, state, arrays, plan):
            state, metrics = take_step(engine, state, arrays, plan)
            return state, {**metrics, "loss": np.nan}

        take_step = JaxEngine.step
        monkeypatch.setattr(JaxEngine, "step", step)
        with pytest.raises(NonFiniteLoss, match="at step 0 .* no checkpoint had been written yet"):
            train(tiny_config, tmp_path)


@pytest.fixture
def command(call_command):
    """`command(*arguments)` gives exit code, stdout and stderr."""
    return partial(call_command, main)


class TestCommand:
    def test_a_whole_run(self, config_file, tiny_run, tiny_config, tmp_path, command, snapshot):
        code, out, err = command("--config", config_file, "--workdir", tmp_path / "run")
        assert (code, err) == (0, "")
        lines = out.splitlines()
        parameters = sum(x.size for x in jax.tree.leaves(ttm_jax.load(tiny_run.path).variables))
        assert lines[0] == f"{parameters:,} parameters on cpu; run folder {tmp_path / 'run'}"
        assert sum(line.startswith("evaluation at step ") for line in lines) == 4
        assert sum(bool(re.fullmatch(r" +\d+ × \d+ = .*  (right|wrong, \d+)", line)) for line in lines) >= 12
        assert "stage 1: operands from 0 to 99" in lines
        assert re.fullmatch(r"finished: 40 steps, 320 examples, \d+ s", lines[-3])
        assert lines[-2] == f"curves: {tmp_path / 'run' / 'curves.png'}"
        assert lines[-1] == f"measure: {this_python()} -m ttm_jax.evaluate {tmp_path / 'run'}"
        assert snapshot(tmp_path / "run", tiny_config) == snapshot(tiny_run.path, tiny_config)

    def test_a_second_interrupt_stops_at_once(self, config_file, tmp_path, command, monkeypatch, display):
        def interrupt_twice(event):
            if isinstance(event, Stepped) and event.step == 13:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

        display.show = interrupt_twice
        monkeypatch.setattr(command_module, "make_display", lambda task, started: display)
        code, _, err = command("--config", config_file, "--workdir", tmp_path / "run")
        assert code == 130
        assert "stopped at once; --resume goes on from the latest checkpoint" in err.splitlines()[-1]
        assert saved_steps(tmp_path / "run", LATEST) == [10]

    def test_help_has_an_example(self, command):
        code, out, _ = command("--help")
        assert code == 0
        assert "example: python -m ttm_jax.train --config" in out
        assert re.search(r"--model.memory-size VALUE\s+an integer \(4\)", out)

    def test_the_run_folder_is_named_after_the_config(self, config_file):
        parser = make_parser()
        config, workdir = resolve(parser.parse_args(["--config", str(config_file), "--train.seed", "3"]))
        assert workdir == Path("runs/tiny")
        assert config.train.seed == 3
        assert resolve(parser.parse_args([]))[1].parent == Path("runs")
        assert resolve(parser.parse_args(["--config", "multiplication/quick"]))[1] == Path("runs/multiplication-quick")

    def test_help_has_the_values_of_the_config_that_is_named(self, config_file, command):
        code, out, _ = command("--config", config_file, "--help")
        assert code == 0
        assert re.search(r"--model.width VALUE\s+an integer \(16\)", out)

    def test_a_run_is_not_overwritten(self, tiny_run, config_file, command):
        before = checksums(tiny_run.path)
        code, out, err = command("--config", config_file, "--workdir", tiny_run.path)
        assert (code, out) == (2, "")
        assert err == (
            f"python -m ttm_jax.train: error: {tiny_run.path} has a run already; --resume goes on with it, "
            "--workdir names another folder\n"
        )
        assert checksums(tiny_run.path) == before

    @pytest.mark.parametrize("with_config", [False, True])
    def test_a_changed_config_is_refused(self, with_config, tiny_run, config_file, command):
        before = checksums(tiny_run.path)
        config = ["--config", config_file] if with_config else []
        changes = ["--model.width", "32", "--optimizer.learning-rate", "0.5", "--train.max-epochs", "9"]
        code, _, err = command(*config, "--workdir", tiny_run.path, "--resume", *changes)
        assert code == 2
        for told in ("model.width was 16, got 32", "optimizer.learning_rate was 0.01, got 0.5"):
            assert told in err
        assert "max_epochs" not in err  # which may change
        assert err.count("\n") == 1
        assert checksums(tiny_run.path) == before

    def test_a_changed_config_is_refused_before_the_first_checkpoint_as_well(self, config_file, tmp_path, command):
        run = tmp_path / "run"
        run.mkdir()
        (run / "config.toml").write_bytes(config_file.read_bytes())
        code, _, err = command("--workdir", run, "--resume", "--train.seed", "8")
        assert code == 2
        assert err.endswith("was trained with another config: train.seed was 7, got 8\n")

    def test_a_truncated_checkpoint_is_not_gone_on_from(self, tiny_config, tmp_path, train, command):
        train(tiny_config, tmp_path, stop_at=3)
        array = max((tmp_path / LATEST / "3").rglob("*"), key=lambda path: path.stat().st_size)
        array.write_bytes(array.read_bytes()[:-100])
        code, _, err = command("--workdir", tmp_path, "--resume")
        assert code == 2
        assert err.endswith("is damaged: its checksum differs\n")
        assert err.count("\n") == 1

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--wrokdir", "x"], "unknown argument --wrokdir; did you mean --workdir?; --help lists"),
            (["--model.memory-siez=3"], "unknown argument --model.memory-siez; did you mean --model.memory-size?"),
            (["--model.memory-size", "0"], "--model.memory-size 0: model.memory_size must be positive, got 0"),
            (["--model.num-heads", "5"], "--model.num-heads 5: model.num_heads must divide model.width"),
            (["--model.num-heads"], "argument --model.num-heads: expected one argument"),
            (["--config"], "argument --config: expected one argument"),
            (["--workdir", "{tmp}/x", "--model.dtype", "float64"], "model.dtype and model.param_dtype float64 need"),
            (["--config", "missing.toml"], "config missing.toml: cannot be read: No such file or directory"),
            (["--config", "no-such-name"], "config no-such-name: no such file, and none of the shipped ones: "),
            (["--config", "{tmp}/bad.toml"], "config {tmp}/bad.toml: unknown key model.widht; did you mean"),
            (["--workdir", "{tmp}/none", "--resume"], "--resume: {tmp}/none is no run folder: it has no config"),
            (
                ["--config", "{tmp}/tiny.toml", "--workdir", "{tmp}/none", "--resume"],
                "checkpoint {tmp}/none: no such file or folder",
            ),
            (["--config", "{tmp}/tiny.toml", "--workdir", "{tmp}/bad.toml"], "{tmp}/bad.toml: File exists"),
            (["--config", "{tmp}/tiny.toml", "--workdir", "{tmp}/bad.toml/x"], "{tmp}/bad.toml/x: Not a directory"),
        ],
    )
    def test_bad_input_is_one_line(self, arguments, message, config_file, tmp_path, command):
        (tmp_path / "bad.toml").write_text("[model]\nwidht = 3\n")
        code, out, err = command(*(argument.format(tmp=tmp_path) for argument in arguments))
        assert (code, out) == (2, "")
        assert err.startswith(f"python -m ttm_jax.train: error: {message.format(tmp=tmp_path)}")
        assert err.count("\n") == 1


def test_a_folder_with_neither_config_nor_checkpoint_is_not_gone_on_from(tiny_config, tmp_path, train):
    with pytest.raises(CheckpointError, match="nor a run folder with one"):
        train(tiny_config, tmp_path, resume=True)
    (tmp_path / LATEST).mkdir()
    with pytest.raises(ConfigError, match="has a run already"):
        train(tiny_config, tmp_path)
