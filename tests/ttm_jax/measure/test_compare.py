"""Runs side by side."""

import json

import pytest

from ttm_jax.measure.compare import main, markdown, summarize_run

CONFIG = "[optimizer]\nname = '{name}'\n"


def write_run(path, name, evaluations):
    path.mkdir()
    (path / "config.toml").write_text(CONFIG.format(name=name))
    (path / "versions.json").write_text('{"jax": "0.10.2"}')
    lines = [{"kind": "train", "step": 1}]
    for step, correct in evaluations:
        exact_match = {name: {"correct": correct, "total": 100} for name in ("1x1", "2x1", "2x2", "3x2")}
        lines.append(
            {"kind": "eval", "step": step, "examples": 8 * step, "seconds": step / 2, "exact_match": exact_match}
        )
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / "a", "muon", [(100, 82), (200, 91), (300, 99)]),
        write_run(tmp_path / "b", "adamw", [(100, 10), (200, 81)]),
    ]


def test_a_run_in_figures(runs):
    row = summarize_run(runs[0], runs[0])
    assert row["changed"] == {}
    assert (row["steps"], row["examples"], row["seconds"]) == (300, 2400, 150.0)
    assert row["marks_met"] == {"1x1": 150.0, "2x1": 100.0, "2x2": 100.0, "3x2": 50.0}
    other = summarize_run(runs[1], runs[0])
    assert other["changed"] == {"optimizer.name": "adamw"}
    assert other["marks_met"] == {"1x1": None, "2x1": None, "2x2": None, "3x2": 100.0}


def test_the_table(runs):
    *_, first, second = markdown([summarize_run(run, runs[0]) for run in runs]).splitlines()
    assert first == "| a | - | 2,400 | 2:30 | 2:30 | 99.0 | 99.0 | 99.0 | 99.0 |"
    assert second == '| b | optimizer.name = "adamw" | 1,600 | 1:40 | no | 81.0 | 81.0 | 81.0 | 81.0 |'


def test_the_command_writes_the_rows(runs, tmp_path, capsys):
    out = tmp_path / "rows.json"
    assert main([*map(str, runs), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("| run | changed |")
    assert [row["run"] for row in json.loads(out.read_text())] == ["a", "b"]


@pytest.mark.parametrize("missing", ["config.toml", "metrics.jsonl", "versions.json"])
def test_no_run_is_one_line(runs, missing, capsys):
    (runs[1] / missing).unlink()
    assert main([str(run) for run in runs]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert str(runs[1]) in error
