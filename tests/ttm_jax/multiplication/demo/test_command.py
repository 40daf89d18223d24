"""The command on a tiny run: one product, many, pictures, and what is said about bad input."""

import io
import json
from functools import partial
from pathlib import Path

import pytest

import ttm_jax
from ttm_jax.cli import this_python
from ttm_jax.multiplication.demo import command as demo
from ttm_jax.multiplication.demo.command import main


@pytest.fixture
def command(call_command, tiny_run, monkeypatch):
    """`command(*arguments)` gives exit code, stdout and stderr; the tiny run is the shipped checkpoint."""
    monkeypatch.setattr(demo, "CHECKPOINT", tiny_run.path)
    return partial(call_command, main)


@pytest.fixture(scope="module")
def multiplier(tiny_run):
    return ttm_jax.load(tiny_run.path)


@pytest.fixture(scope="module")
def right_and_wrong(multiplier):
    """A pair that the tiny run answers rightly, and one that it does not."""
    pairs = [(a, b) for a in range(10) for b in range(10)]
    products = multiplier.multiply(*zip(*pairs, strict=True))
    right = [product == a * b for (a, b), product in zip(pairs, products, strict=True)]
    return pairs[right.index(True)], pairs[right.index(False)]


class Typed(io.StringIO):
    """Stdin as a terminal."""

    def isatty(self):
        return True


def test_one_product(command, right_and_wrong):
    (a, b), (c, d) = right_and_wrong
    code, out, err = command(f"{a}*{b}")
    assert (code, err) == (0, "")
    assert out.startswith(f"{a} × {b} = {a * b}  ✓ right  may have been in training  ")
    assert "The answer, units first" in out
    assert "The memory over the steps, 4 tokens" in out
    code, out, err = command(f"{c}×{d}")
    assert (code, err) == (0, "")
    assert f"✗ wrong, it is {c * d}" in out


def test_a_product_in_three_arguments(command):
    code, out, _ = command("12", "x", "34", "--json")
    assert code == 0
    assert json.loads(out)["problem"] == "12 × 34"


def test_json_is_one_object(command, multiplier):
    code, out, err = command("12*34", "--json")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    result = json.loads(out)
    assert result["answer"] == multiplier.multiply([12], [34])[0]
    assert result["product"] == 408
    assert [step["place"] for step in result["steps"]][:2] == ["units", "tens"][: len(result["steps"])]


def test_checkpoint_by_flag(command, tiny_run, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "CHECKPOINT", tmp_path / "none")
    assert command("1*2", "--json", "--checkpoint", tiny_run.path)[0] == 0


def test_a_conversation(command, monkeypatch, right_and_wrong):
    (a, b), (c, d) = right_and_wrong
    lines = iter([f"{a}*{b}", "", "what?", f"{c} x {d}", " Quit ", "5*5"])
    monkeypatch.setattr("sys.stdin", Typed())
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    code, out, err = command()
    assert code == 0
    assert err == "'what?' is no product: type two numbers from 0 to 99999, such as 123*45\n"
    assert f"{a} × {b} = {a * b}  ✓ right" in out
    assert "so far 1 of 1 right (100 %)" in out
    assert f"✗ wrong, it is {c * d}" in out
    assert out.endswith("1 of 2 right (50 %)\n")
    assert "5 × 5" not in out


@pytest.mark.parametrize("end", [KeyboardInterrupt, EOFError])
def test_a_conversation_is_ended_by_a_key(end, command, monkeypatch):
    def input(prompt):
        raise end

    monkeypatch.setattr("sys.stdin", Typed())
    monkeypatch.setattr("builtins.input", input)
    code, out, err = command()
    assert (code, err) == (0, "")
    assert out.endswith("0 of 0 right\n")


def test_products_from_a_pipe(command, monkeypatch, right_and_wrong):
    (a, b), (c, d) = right_and_wrong
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{a}*{b}\n{c}*{d}\n"))
    code, out, err = command("--json")
    assert (code, err) == (0, "")
    first, second = map(json.loads, out.splitlines())
    assert (first["correct"], second["correct"]) == (True, False)
    assert (first["session"], second["session"]) == ({"correct": 1, "total": 1}, {"correct": 1, "total": 2})


def test_a_pipe_with_a_bad_line_goes_on_and_says_so(command, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("-1*2\n3*4\n"))
    code, out, err = command("--json")
    assert code == 2
    assert json.loads(out)["problem"] == "3 × 4"
    assert err.startswith("negative numbers")
    assert err.count("\n") == 1


@pytest.mark.parametrize("suffix", ["png", "html"])
def test_a_picture(suffix, command, tmp_path):
    path = tmp_path / f"memory.{suffix}"
    code, out, err = command("12*34", "--plot", path)
    assert (code, err) == (0, "")
    assert f"picture: {path}\n" in out
    assert path.stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["hello"], "'hello' is no product: type two numbers from 0 to 99999, such as 123*45"),
        (["-5*3"], "negative numbers and differences are not for this network"),
        (["5", "x", "-3"], "negative numbers and differences are not for this network"),
        (["123456*2"], "123456 has 6 digits, too many: the numbers are from 0 to 99999"),
        (["2*3", "--plot", "x.gif"], "--plot x.gif: the file must end in .png or .html"),
        (["2*3", "--plot", "none/x.png"], "--plot none/x.png: there is no folder none"),
        (["--plot", "x.png"], f"--plot wants a product: {this_python()} -m ttm_jax.demo '123*45' --plot x.png"),
        (["--port", "8000"], "--port goes with --page"),
        (["--page", "--port", "70000"], "argument --port: must be a port from 1 to 65535, got '70000'"),
        (["--page", "--port", "-1"], "argument --port: must be a port from 1 to 65535, got '-1'"),
        (["--page", "--json"], "argument --json: not allowed with argument --page"),
        (["2*3", "--jsn"], "unknown argument --jsn; did you mean --json?"),
        (
            ["2*3", "--checkpoint", "nowhere"],
            "checkpoint {here}/nowhere: no such file or folder, and none of the ",
        ),
    ],
)
def test_bad_input_is_one_line(arguments, message, command):
    code, out, err = command(*arguments)
    assert code == 2
    assert out == ""
    assert err.startswith(f"python -m ttm_jax.demo: error: {message.format(here=Path.cwd())}")
    assert err.count("\n") == 1


def test_a_picture_that_cannot_be_written_is_one_line(command, tmp_path):
    (tmp_path / "x.png").mkdir()
    code, out, err = command("2*3", "--plot", tmp_path / "x.png")
    assert code == 2
    assert out.startswith("2 × 3 = ")
    assert err == f"python -m ttm_jax.demo: error: {tmp_path / 'x.png'}: Is a directory\n"


def test_a_model_without_a_machine_is_one_line(command, baseline):
    code, out, err = command("2*3", "--checkpoint", baseline)
    assert (code, out) == (2, "")
    assert err.endswith("baseline: model.kind is transformer, which has no memory to show; name a machine's\n")
    assert err.count("\n") == 1


def test_a_checkpoint_that_is_none_is_one_line(command, tmp_path):
    code, _, err = command("2*3", "--checkpoint", tmp_path)
    assert code == 2
    assert "neither a checkpoint (a folder with params/ and meta/) nor a run folder with one" in err
    assert err.count("\n") == 1


def test_help_has_an_example(command):
    code, out, _ = command("--help")
    assert code == 0
    assert "example: python -m ttm_jax.demo '123*45'" in out
