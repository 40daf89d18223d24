"""One part changed at a time: which runs there are, and what comes of them. Nothing is trained here."""

import json
import shlex
import subprocess

import pytest

from ttm_jax.ablations import CONFIG, REFERENCE, ROWS, main
from ttm_jax.config import config_to_toml, find_config, load_config
from ttm_jax.train import make_parser, resolve

NAMES = [REFERENCE, "no memory"]


def write_run(workdir, share, steps=None):
    """A run of the budget's config, finished unless `steps` says less."""
    config = load_config(find_config(CONFIG))
    steps = steps or config.train.max_epochs * config.train.steps_per_epoch
    workdir.mkdir(parents=True)
    (workdir / "config.toml").write_text(config_to_toml(config))
    (workdir / "versions.json").write_text('{"jax": "0.10.2"}')
    exact_match = {length: {"correct": round(share * 200), "total": 200} for length in ("1x1", "2x1", "2x2", "3x2")}
    record = {"kind": "eval", "step": steps, "examples": 64 * steps, "seconds": 90.0, "exact_match": exact_match}
    (workdir / "metrics.jsonl").write_text(json.dumps(record) + "\n")


@pytest.fixture
def folders(tmp_path):
    return ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "results")]


@pytest.fixture
def finished(tmp_path):
    for name, shares in {"reference": (0.9, 0.8), "no-memory": (0.5, 0.3)}.items():
        for seed, share in enumerate(shares):
            write_run(tmp_path / "runs" / f"{name}-{seed}", share)


def test_the_table_has_mean_and_range_of_the_seeds(finished, folders, tmp_path, capsys):
    assert main(["--only", *NAMES, "--seeds", "2", *folders]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].startswith("| reference | 85.0 (80.0 - 90.0) |")
    assert out.splitlines()[3].startswith("| no memory | 40.0 (30.0 - 50.0) |")
    results = tmp_path / "results"
    assert (results / "ablations.md").read_text() == out
    assert (results / "ablations.png").stat().st_size > 1000
    reference, other = json.loads((results / "ablations.json").read_text())["rows"]
    assert reference["exact_match"]["3x2"][1] == {"correct": 160, "total": 200}
    assert other["command"].endswith("no-memory-0 --model.write none --train.seed 0")


def test_commands_are_those_of_the_training(folders, capsys):
    assert main(["--list", "--seeds", "1", *folders]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(ROWS)
    configs = [resolve(make_parser().parse_args(shlex.split(line)[3:]))[0] for line in lines]
    assert len(set(map(config_to_toml, configs))) == len(ROWS), "each row differs from all others"


def test_only_what_is_not_finished_is_run(finished, folders, tmp_path, monkeypatch, capsys):
    asked = []

    def train(command, **_):
        asked.append(command[1:])
        write_run(tmp_path / "runs" / "reference-2", 1.0)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", train)
    assert main(["--only", REFERENCE, *folders]) == 0
    (command,) = asked
    assert command[:4] == ["-m", "ttm_jax.train", "--config", CONFIG]
    assert command[-2:] == ["--train.seed", "2"]
    assert "| reference | 90.0 (80.0 - 100.0) |" in capsys.readouterr().out


def test_a_run_that_was_stopped_goes_on(tmp_path, folders, capsys):
    write_run(tmp_path / "runs" / "reference-0", 0.5, steps=50)
    assert main(["--list", "--only", REFERENCE, "--seeds", "1", *folders]) == 0
    assert capsys.readouterr().out.endswith("--train.seed 0 --resume\n")


@pytest.mark.parametrize(
    ("result", "code", "message"),
    [
        (subprocess.CompletedProcess([], 2), 1, "--train.seed 0: ended with exit status 2"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
    ],
)
def test_a_training_that_does_not_end_well_is_said(folders, monkeypatch, capsys, result, code, message):
    def train(*_, **__):
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(subprocess, "run", train)
    assert main(["--only", REFERENCE, *folders]) == code
    assert capsys.readouterr().err.endswith(f"{message}\n")


def test_an_unknown_row_is_one_line(folders, capsys):
    assert main(["--only", "no memroy", *folders]) == 2
    assert "--only 'no memroy': there is no such row; --help lists them" in capsys.readouterr().err
