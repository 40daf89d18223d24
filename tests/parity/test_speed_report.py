"""The speed comparison: its page, its table in the README, and what its command says. Nothing is measured here."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import torch

from parity.speed import command
from parity.speed.__main__ import main as door
from parity.speed.cases import EAGER, JAX, all_cases
from parity.speed.report import README_ROWS, markdown, readme_table
from ttm_jax.measure.report import put_block

ROOT = Path(__file__).parents[2]
RUN = {"date": "2026-11-20T12:00:00+00:00", "command": "python -m parity.speed", "load_at_start": 0.1}


def cell(ms, ratio=1.0, **fields):
    def spread(x):
        return {"median": x, "quartile_1": 0.9 * x, "quartile_3": 1.1 * x}

    return {"first_call_s": 2.0, "ms": spread(ms), "ratio": spread(ratio), "peak_mb": 1234.0} | fields


@pytest.fixture
def result():
    def case(name, size, steps, kind, variants):
        fields = dict(size=size, steps=steps, dtype="float32", kind=kind, batch_size=64, optimizer=None)
        return {"name": name, **fields, "difference": 0.0, "rounds": 5, "variants": variants, "run": RUN}

    did_not_end = {"failed": "first calls: did not end in 300 s", "timeout": True}
    return {
        "jax": "0.10.2",
        "torch": "2.13.0",
        "commit": "0123456789abcdef+changes",
        "machine": "a CPU, 2 CPU cores",
        "device": "cpu",
        "backend": "cpu",
        "threads": 2,
        "cases": [
            case(
                "quick/6/float32/train",
                "quick",
                6,
                "train",
                {JAX: cell(50), EAGER: cell(75, 1.5), "torch-compile": cell(60, 1.2)},
            ),
            case("quick/6/float32/forward", "quick", 6, "forward", {JAX: cell(20), EAGER: cell(10, 0.5)}),
            case(
                "paper-16/64/float32/train",
                "paper-16",
                64,
                "train",
                {JAX: cell(500), "torch-compile": did_not_end, "of an earlier version": cell(600, 1.2)},
            ),
            {"name": "paper-16/1/float32/train", "refused": "they differ", "variants": {}, "kind": "train", "run": RUN},
        ],
    }


def test_the_page(result):
    page = markdown(result)
    lines = page.splitlines()
    (row,) = (line for line in lines if line.startswith("| quick | 6 | float32 | 64 | 50.0"))
    assert row.endswith("| 50.0 (45.0 - 55.0) | 75.0 (67.5 - 82.5) | 60.0 (54.0 - 66.0) | **1.20** (1.08 - 1.32) |")
    assert "| paper-16 | 64 | float32 | 64 | 500 (450 - 550) | - | [1] | - |" in lines
    assert "1. paper-16/64/float32/train, compile: first calls: did not end in 300 s" in lines
    assert "- paper-16/1/float32/train: they differ" in lines
    assert markdown(json.loads(json.dumps(result))) == page


def test_the_short_table(result):
    table = readme_table(result)
    assert "| training step, `quick`, batch 64 | 50.0 ms | 60.0 ms (compile) | **1.20** (1.08 - 1.32) |" in table
    assert table.count("not measured") == len(README_ROWS) - 1
    assert "commit `0123456+changes`, 2026-11-20." in table
    text = put_block("a\n<!-- speed -->\nold\n<!-- /speed -->\nb\n", "speed", readme_table(result))
    assert text == f"a\n<!-- speed -->\n{table}\n<!-- /speed -->\nb\n"
    assert put_block(text, "speed", readme_table(result)) == text
    with pytest.raises(ValueError, match="<!-- speed -->"):
        put_block("a", "speed", readme_table(result))


def test_the_short_table_shows_cases_that_there_are():
    assert set(README_ROWS) <= {case.name for case in all_cases()}


def test_the_page_has_the_table_of_the_results():
    readme = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    found = json.loads((ROOT / "results/speed/cpu.json").read_text(encoding="utf-8"))
    assert put_block(readme, "speed", readme_table(found)) == readme, (
        "python -m parity.speed --report --out results/speed --readme docs/performance.md"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "results/speed").glob("**/*.json")), ids=str)
def test_the_page_is_that_of_the_results(path):
    found = json.loads(path.read_text(encoding="utf-8"))
    assert path.with_suffix(".md").read_text(encoding="utf-8") == markdown(found), (
        f"python -m parity.speed --report --out {path.parent.relative_to(ROOT)}"
    )


@pytest.fixture
def fake_measure(monkeypatch, result):
    """In place of measuring: gives two cases, then is interrupted, or dies."""
    asked = []

    def fake(case, *_):
        asked.append(case.name)
        if len(asked) > 2:
            raise KeyboardInterrupt
        return {**result["cases"][0], "name": case.name}, {"device": "cpu", "threads": 2}

    monkeypatch.setattr(command, "measure", fake)
    return asked


def test_an_interruption_keeps_what_is_measured_and_can_be_resumed(fake_measure, tmp_path, capsys):
    names = [case.name for case in all_cases()]
    assert command.main(["--out", str(tmp_path)]) == 130
    *_, last = capsys.readouterr().err.splitlines()
    assert last == (
        f"python -m parity.speed: error: interrupted; 2 cases measured; --resume goes on from {tmp_path / 'cpu.json'}"
    )
    assert [case["name"] for case in json.loads((tmp_path / "cpu.json").read_text())["cases"]] == names[:2]
    assert {path.name for path in tmp_path.iterdir()} == {"cpu.json", "cpu.md"}
    del fake_measure[:]
    assert command.main(["--out", str(tmp_path), "--resume"]) == 130
    assert fake_measure[0] == names[2]
    cases = json.loads((tmp_path / "cpu.json").read_text())["cases"]
    assert len(cases) == 4
    page = (tmp_path / "cpu.md").read_text()
    assert page.count("(load before it") == len({case["run"]["date"] for case in cases})


def test_other_versions_are_not_resumed(fake_measure, tmp_path, capsys):
    assert command.main(["--quick", "--out", str(tmp_path)]) == 0
    path = tmp_path / "cpu.json"
    path.write_text(path.read_text().replace('"torch": "', '"torch": "1'))
    capsys.readouterr()
    assert command.main(["--quick", "--out", str(tmp_path), "--resume"]) == 2
    assert "cpu.json cannot be resumed: its torch is '1" in capsys.readouterr().err


def test_the_json_is_printed(fake_measure, tmp_path, capsys):
    assert command.main(["--quick", "--json", "--out", str(tmp_path)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((tmp_path / "cpu.json").read_text())
    (runs,) = {json.dumps(case["run"]) for case in printed["cases"]}
    assert json.loads(runs).keys() == RUN.keys()


def test_a_failure_is_in_the_exit_status(monkeypatch, result, tmp_path, capsys):
    result["cases"][0]["variants"][EAGER] = {"failed": "died", "timeout": False}
    monkeypatch.setattr(command, "measure", lambda *_: (result["cases"][0], {"threads": 2}))
    assert command.main(["--quick", "--only", "quick", "--out", str(tmp_path)]) == 1
    assert "1 measurements failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--only nothing", "--only nothing fits no case; names are such as quick/"),
        ("--quik", "unknown argument --quik; did you mean --quick?"),
        ("--variants jaxx", "invalid choice: 'jaxx'"),
        ("--first-call 0", "must be a positive integer, got '0'"),
        ("--report --out {folder}/none", "cpu.json: No such file or directory"),
        ("--report --out {folder}", "cpu.json: not a result of this command"),
        ("--resume --out {folder}", "cpu.json: not a result of this command"),
        ("--quick --out {folder}/cpu.json", "cpu.json: File exists"),
        ("--quick --out {folder}", "cpu.json is there already: --resume adds to it; move it away to measure anew"),
        (
            "--quick --device cuda --out {folder}",
            "--device cuda: PyTorch sees no CUDA device; --device cpu does without",
        ),
    ],
)
def test_what_cannot_be_is_one_line(arguments, message, fake_measure, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "cpu.json").write_text('{"cases": [{}]}')
    try:
        code = command.main(arguments.format(folder=tmp_path).split())
    except SystemExit as error:
        code = error.code
    *_, last = capsys.readouterr().err.splitlines()
    assert code == 2
    assert re.match(rf"python -m parity.speed: error: .*{re.escape(message)}", last), last


def test_without_pytorch(monkeypatch, fake_measure, tmp_path, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    assert command.main(["--quick", "--out", str(tmp_path)]) == 2
    assert "error: PyTorch is not installed; pip install 'token-turing" in capsys.readouterr().err
    assert not fake_measure


def test_names_are_listed(capsys):
    assert command.main(["--list", "--quick", "--only", "quick"]) == 0
    assert capsys.readouterr().out == "quick/6/float32/train\n"


def test_a_reader_that_goes_away_is_no_fault_of_a_file(result, unread, tmp_path, capsys):
    (tmp_path / "cpu.json").write_text(json.dumps(result))
    with unread("stdout"):
        assert door(["--report", "--out", str(tmp_path)]) == 141
    assert capsys.readouterr().err == ""
