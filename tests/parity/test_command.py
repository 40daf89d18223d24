"""`python -m parity`: what it prints, and what it says of wrong uses."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import parity.cases.scenic
from parity import __main__
from parity.cases import data, layers
from parity.command import main
from parity.compare import DEFINITION


def test_the_table(capsys):
    assert main(["--only", "layers/feed_forward"]) == 0
    out, err = capsys.readouterr()
    header, first, second, definition, *_, origin, summary = out.splitlines()
    assert header.split() == ["case", "compared", "difference", "bound", "ok"]
    assert first.split()[0] == "layers/feed_forward"
    assert "float64: outputs, gradients, input gradients" in first
    assert first.split()[-3:] == ["<=", "1e-10", "yes"]
    assert second.split()[-3:] == ["<=", "1e-05", "yes"]
    assert definition == f"difference: {DEFINITION}"
    assert origin.startswith(f"ttm_torch: torch {torch.__version__} on cpu; ttm_jax: jax ")
    assert summary == "2 of 2 comparisons in bounds"
    assert err == "1/1  layers/feed_forward\n"


def test_what_is_out_of_bounds_is_named(monkeypatch, capsys):
    monkeypatch.setattr("ttm_torch.machine.layers.LAYER_NORM_EPS", 1.1e-6)
    assert main(["--only", "layers/transformer_block"]) == 1
    out, _ = capsys.readouterr()
    assert [line.split()[-1] for line in out.splitlines()[1:3]] == ["NO", "yes"]
    assert out.splitlines()[-1].startswith(
        "1 of 2 comparisons in bounds; NOT OK: layers/transformer_block (float64: outputs, gradients, input gradients"
    )


def test_a_mutation_that_is_not_caught_is_not_ok(monkeypatch, capsys):
    monkeypatch.setattr("parity.cases.mutations._NextStep.batch", data.ttm_jax.MultiplicationDataset.batch)
    assert main(["--only", "mutation/batches", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["summary"].startswith(
        "1 of 1 comparisons in bounds, 0 of 1 mutations caught; NOT OK: mutation/batches"
    )


def test_json(capsys):
    assert main(["--only", "mutation/w*", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["summary"] == "3 of 3 comparisons in bounds, 3 of 3 mutations caught"
    assert report["definition"] == DEFINITION
    assert report["device"] == "cpu"
    assert report["provenance"]["torch"] == torch.__version__
    control, changed, *_ = report["comparisons"]
    assert control.keys() == {"case", "what", "difference", "must_be", "bound", "at", "ok"}
    assert (control["case"], control["must_be"]) == ("mutation/weight", "at most")
    assert control["difference"] <= control["bound"]
    assert (changed["case"], changed["must_be"]) == ("mutation/weight", "above")
    assert changed["difference"] > changed["bound"]
    assert report["comparisons"][-1]["difference"] is None  # infinite: weights saved in float16


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--only", "no-such-case"],
            "--only no-such-case: no case has that in its name; names begin with scenic, ",
        ),
        (["--onyl", "machine"], "unknown argument --onyl; did you mean --only?"),
        (["--device", "tpu"], "argument --device: invalid choice: 'tpu'"),
        (["machine"], "unknown argument machine"),
    ],
)
def test_a_wrong_use_gets_one_line(argv, message, capsys):
    check_refused(argv, message, capsys)


def check_refused(argv, message, capsys):
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert err.startswith("python -m parity: error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there(capsys):
    check_refused(["--device", "cuda"], "--device cuda: PyTorch sees no CUDA device", capsys)


def test_without_pytorch(monkeypatch, capsys):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "torch" else find_spec(name))
    check_refused([], "PyTorch is not installed; pip install 'token-turing-machine[torch]' installs it", capsys)


def test_a_missing_reference_case(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(parity.cases.scenic, "shipped_cases", lambda: tmp_path)
    check_refused(["--only", "scenic/simple_mlp"], f"{tmp_path}/simple_mlp.npz: no such file", capsys)


def test_ctrl_c(monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(layers.LayerCase, "rows", stop)
    monkeypatch.setattr(sys, "argv", ["parity", "--only", "layers/dense"])
    assert __main__.main() == 130
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)


def test_help_does_not_wait_for_pytorch():
    code = "import sys, parity.command as c; c._parser().print_help(); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "example: python -m parity --only erase_add" in done.stdout
