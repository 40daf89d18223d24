"""How the command ends, or goes on, where something outside of it goes wrong: on the toy task, which compiles fast."""

import errno
import io
import json
import os
import shutil
import signal
import sys

import jax
import pytest

from tests.toy import Config, Line, LineObjective
from ttm_jax.training import checkpoint_files, command as command_module
from ttm_jax.training.checkpoint_files import BEST, LATEST, CheckpointError, saved_steps
from ttm_jax.training.command import SIGNALS, make_training_parser, run_training
from ttm_jax.training.config import ConfigError
from ttm_jax.training.jax_engine import JaxEngine
from ttm_jax.training.loop import Said, Stepped, train
from ttm_jax.training.run_folder import RunFolder

CONFIG = Config()


def start(workdir, resume=False, stop=lambda: False):
    engine = JaxEngine(LineObjective(), CONFIG.optimizer, CONFIG.train.seed, CONFIG.batch_size, num_devices=1)
    return train(CONFIG, Line(CONFIG), engine, workdir, resume, stop)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 30 steps that nothing happened to. To be read, not changed."""
    path = tmp_path_factory.mktemp("whole")
    list(start(path))
    return path


@pytest.fixture
def run(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


@pytest.fixture
def command(monkeypatch, signal_handlers):
    """`command(workdir, act, *flags)` trains, calls `act` with each event first, and gives the exit code."""

    def call(workdir, act=lambda event: None, *flags):
        def acting(config, task, workdir, resume, stop, init):
            for event in start(workdir, resume, stop):
                act(event)
                yield event

        monkeypatch.setattr(command_module, "resolve", lambda args: (CONFIG, workdir))
        monkeypatch.setattr(command_module, "make_task", Line)
        parser = make_training_parser("ttm_jax", [])
        return run_training(parser, parser.parse_args(flags), acting)

    return call


def at_step(step, act):
    return lambda event: act() if isinstance(event, Stepped) and event.step == step else None


@pytest.mark.parametrize("name", SIGNALS)
def test_signals_save_and_end(name, command, tmp_path, capsys):
    assert command(tmp_path, at_step(7, lambda: signal.raise_signal(getattr(signal, name)))) == 0
    assert saved_steps(tmp_path, LATEST) == [7]
    out, err = capsys.readouterr()
    assert "interrupted: 7 steps" in out
    assert err.count("\n") == 1


def test_a_closed_terminal_does_not_end_what_nohup_started(command, tmp_path):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert command(tmp_path, at_step(7, lambda: signal.raise_signal(signal.SIGHUP))) == 0
    assert saved_steps(tmp_path, LATEST) == [20, 30]


def test_a_second_interrupt_during_the_save_is_one_line(command, tmp_path, capsys, monkeypatch):
    def interrupted(path):
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoint_files, "_write_checksums", interrupted)
    assert command(tmp_path, at_step(7, lambda: signal.raise_signal(signal.SIGINT))) == 130
    assert capsys.readouterr().err.count("\n") == 2
    assert saved_steps(tmp_path, LATEST) == []
    monkeypatch.undo()
    assert [type(event).__name__ for event in start(tmp_path, resume=True)][-1] == "Ended"


@pytest.mark.parametrize("buffered", [True, False])
def test_a_reader_that_goes_away_does_not_end_it(buffered, command, tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb", -1 if buffered else 0) as pipe:  # noqa: PTH123 - a descriptor
        for name in ("stdout", "stderr"):
            monkeypatch.setattr(sys, name, open_text(pipe))
        assert command(tmp_path, at_step(25, lambda: signal.raise_signal(signal.SIGTERM))) == 0
    assert saved_steps(tmp_path, LATEST) == [20, 25]


def open_text(file):
    return io.TextIOWrapper(file, "utf-8", write_through=True)


class TestFullDisk:
    def test_of_the_metrics(self, run, command, capsys):
        (run / "metrics.jsonl").rename(run / "kept")
        shutil.rmtree(run / LATEST / "30")

        def fill(event):
            if isinstance(event, Stepped) and event.step == 21:
                (run / "metrics.jsonl").unlink()
                (run / "metrics.jsonl").symlink_to("/dev/full")

        if not os.path.exists("/dev/full"):  # noqa: PTH110 - no file of ours
            pytest.skip("needs /dev/full")
        assert command(run, fill, "--resume") == 1
        err = capsys.readouterr().err
        assert f"{run / 'metrics.jsonl'}: {os.strerror(errno.ENOSPC)}" in err
        assert err.count("\n") == 1
        assert saved_steps(run, LATEST) == [20]

    def test_of_a_checkpoint(self, run, command, capsys, monkeypatch):
        shutil.rmtree(run / LATEST / "30")

        def full(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(checkpoint_files, "_write_checksums", full)
        assert command(run, lambda event: None, "--resume") == 1
        err = capsys.readouterr().err
        assert f"checkpoint {run / LATEST / '30'}: cannot be written: {os.strerror(errno.ENOSPC)}" in err
        assert err.count("\n") == 1
        assert [path.name for path in (run / LATEST).iterdir()] == ["20"]


class TestTwoRuns:
    def test_the_second_is_refused_from_the_first_moment_on(self, tmp_path):
        first = start(tmp_path)
        next(first)
        for resume in (False, True):
            with pytest.raises(ConfigError, match="another run"):
                next(start(tmp_path, resume))
        assert len(list(first)) > 30
        assert len(RunFolder(tmp_path).records()) == 13

    def test_a_run_that_ended_in_any_way_does_not_count(self, tmp_path, command):
        def fail():
            raise RuntimeError("in the middle")

        with pytest.raises(RuntimeError, match="in the middle"):
            command(tmp_path, at_step(12, fail))
        assert list(start(tmp_path, resume=True))[-1].how == "finished"

    def test_a_file_system_without_locks_is_told(self, tmp_path, monkeypatch):
        def unsupported(*_):
            raise OSError(errno.ENOTSUP, "not supported")

        monkeypatch.setattr("fcntl.flock", unsupported)
        events = list(start(tmp_path))
        assert sum(isinstance(event, Said) and "lock" in event.text for event in events) == 1
        assert events[-1].how == "finished"


class TestDamage:
    @pytest.mark.parametrize("line", ["", "{", '{"kind": "train", "st', "[1]", '{"step": 1}', "\0\0\0"])
    def test_a_line_of_the_metrics(self, line, run):
        path = run / "metrics.jsonl"
        lines = path.read_text().splitlines()
        path.write_text("\n".join([*lines[:3], line, *lines[3:]]) + "\n")
        assert RunFolder(run).records() == [json.loads(line) for line in lines]
        said = [event.text for event in start(run, resume=True) if isinstance(event, Said)]
        assert [str(path) in text for text in said] == [True]
        assert path.read_text().splitlines() == lines

    def test_the_newest_checkpoint_and_how_to_go_on(self, run, command, capsys):
        (run / LATEST / "30" / "params" / "_METADATA").write_text("{}")
        assert command(run, lambda event: None, "--resume") == 2
        err = capsys.readouterr().err
        assert f"{run / LATEST / '20'} is whole" in err
        assert err.count("\n") == 1
        shutil.rmtree(run / LATEST / "30")
        assert command(run, lambda event: None, "--resume") == 0
        assert saved_steps(run, LATEST) == [20, 30]


def test_a_path_that_orbax_takes_for_a_pattern(command, tmp_path):
    path = tmp_path / "stages=[0,9]\\x"
    assert command(path, at_step(12, lambda: signal.raise_signal(signal.SIGTERM))) == 0
    assert command(path, lambda event: None, "--resume") == 0
    assert (saved_steps(path, LATEST), saved_steps(path, BEST)) == ([20, 30], [30])


def test_a_path_that_cannot_be_saved_to_is_refused_before_the_first_step(tmp_path, monkeypatch):
    (tmp_path / "[a]").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "[a]"))
    with pytest.raises(CheckpointError, match="TMPDIR"):
        next(start(tmp_path / "[0]"))


def test_strict_settings_of_the_user_change_nothing(tmp_path, whole):
    with jax.numpy_dtype_promotion("strict"), jax.transfer_guard("disallow"):
        run = tmp_path / "strict"
        events = start(run)
        for event in events:
            if isinstance(event, Stepped) and event.step == 12:
                break
        events.close()
        list(start(run, resume=True))
    assert [r["loss"] for r in RunFolder(run).records() if "loss" in r] == [
        r["loss"] for r in RunFolder(whole).records() if "loss" in r
    ]
