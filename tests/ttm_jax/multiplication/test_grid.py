"""Scores by hand, and the command on a tiny run."""

import io
import json
import shutil
from functools import partial

import numpy as np
import pytest
from rich.console import Console

import ttm_jax
from ttm_jax.evaluate import main
from ttm_jax.multiplication.grid import digit_table, evaluate_grid, grid_table, report
from ttm_jax.multiplication.problems import count_digits, decode_problems, encode_answers, held_out_pairs
from ttm_jax.multiplication.scores import Score, add_scores, score_answers
from ttm_jax.statistics import wilson_interval
from ttm_jax.training.checkpoint import load_meta
from ttm_jax.training.checkpoint_files import find_checkpoint
from ttm_jax.training.config import config_to_dict


@pytest.fixture
def command(call_command):
    """`command(*arguments)` gives exit code, stdout and stderr."""
    return partial(call_command, main)


def test_scores_by_hand():
    targets = np.array([[6, 3, 11, 12], [6, 3, 11, 12], [0, 11, 12, 12]])
    predictions = np.array([[6, 3, 11, 11], [6, 4, 11, 11], [0, 11, 5, 5]])
    score = score_answers(predictions, targets)
    assert score == Score(2, 3, 3, (3, 1, 0, 0), (3, 2, 0, 0))
    assert score.accuracy == 2 / 3
    other = Score(1, 2, 1, (1, 1, 0, 0), (2, 2, 0, 0))
    assert add_scores([score, other]) == Score(3, 5, 4, (4, 2, 0, 0), (5, 4, 0, 0))
    result = report({"1x1": score, "2x1": other}, 1.5)
    assert result["exact_match"] == {"1x1": {"correct": 2, "total": 3}, "2x1": {"correct": 1, "total": 2}}
    assert result["interval_95"]["1x1"] == list(wilson_interval(2, 3))
    assert list(result["digits"]) == ["all", "1x1", "2x1"]
    assert result["digits"]["1x1"]["correct"] == [3, 1]
    assert result["digits"]["1x1"]["total"] == [3, 2]
    assert result["digits"]["2x1"]["interval_95"] == [list(wilson_interval(1, 2))] * 2
    assert result["digits"]["all"]["correct"] == [4, 2]
    assert result["position_accuracy"] == 10 / 14
    assert result["sequence_accuracy"] == 3 / 5
    assert result["seconds"] == 1.5


def test_the_grid_agrees_with_multiplying(tiny_run):
    multiplier = ttm_jax.load(tiny_run.path)
    scores = evaluate_grid(multiplier, max_digits=2, pairs=64, batch_size=64)
    assert list(scores) == ["1x1", "1x2", "2x1", "2x2"]
    assert {score.total for score in scores.values()} == {64}
    for name, score in scores.items():
        a, b = held_out_pairs(tuple(map(int, name.split("x"))), 64).T
        products = multiplier.multiply(a, b, batch_size=64)
        assert score.correct == sum(product == x * y for product, x, y in zip(products, a, b, strict=True))
    assert scores["1x1"].correct > 0


def test_rows_of_the_grid_are_first_operands():
    class OnlyWithTheLongerFirst:
        def predict(self, inputs, batch_size, num_steps):
            a, b = decode_problems(inputs)
            right = count_digits(a) > count_digits(b)
            return encode_answers(np.where(right, a * b, a * b + 1))[:, :num_steps], None

    scores = evaluate_grid(OnlyWithTheLongerFirst(), max_digits=3, pairs=20)
    assert {name: score.accuracy for name, score in scores.items()} == {
        f"{n}x{m}": float(n > m) for n in (1, 2, 3) for m in (1, 2, 3)
    }


def test_json_is_one_object(tiny_run, command):
    code, out, err = command(tiny_run.path, "--json", "--max-digits", "2", "--pairs", "64", "--batch-size", "64")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    result = json.loads(out)
    assert list(result["exact_match"]) == ["1x1", "1x2", "2x1", "2x2"]
    for name, counts in result["exact_match"].items():
        assert set(counts) == {"correct", "total"}
        assert result["interval_95"][name] == list(wilson_interval(counts["correct"], counts["total"]))
    everything = result["exact_match"].values()
    assert result["sequence_accuracy"] == sum(c["correct"] for c in everything) / sum(c["total"] for c in everything)
    assert len(result["digits"]["all"]["total"]) == 4
    assert 0 < result["sequence_accuracy"] <= result["position_accuracy"] <= 1
    assert result["seconds"] > 0
    assert result["memory_wiped"] is False
    training = result["training"]
    steps = load_meta(find_checkpoint(tiny_run.path))[1]["progress"]["step"]
    assert (training["steps"], training["examples"]) == (steps, steps * tiny_run.config.data.batch_size)
    assert training["config"] == config_to_dict(tiny_run.config)
    assert training["provenance"]["commit"]


def test_memory_wiped(command):
    """Without what was carried a network that is right knows the units, and little else."""
    code, out, _ = command("five_digits", "--json", "--max-digits", "2", "--pairs", "50", "--wipe-memory")
    result = json.loads(out)
    assert code == 0
    assert result["memory_wiped"] is True
    assert result["digits"]["2x2"]["correct"][0] == 50
    assert result["exact_match"]["2x2"]["correct"] < 25


def test_a_model_without_memory_has_none_to_wipe(command, baseline):
    code, out, err = command(baseline, "--wipe-memory")
    assert (code, out) == (2, "")
    assert err.endswith("model.kind is transformer, which has no memory to show; name a machine's\n")


def test_all_single_digit_pairs_by_default(tiny_run, command):
    code, out, _ = command(tiny_run.path, "--json", "--max-digits", "1")
    assert code == 0
    assert json.loads(out)["exact_match"]["1x1"]["total"] == 100


def test_the_table_for_people(tiny_run, command):
    code, out, err = command(tiny_run.path, "--max-digits", "2", "--pairs", "64", "--batch-size", "64")
    assert (code, err) == (0, "")
    assert out.startswith(f"checkpoint {find_checkpoint(tiny_run.path)}\n")
    assert "exact match on held-out pairs" in out
    assert out.count("/64") == 4
    assert "position accuracy" in out
    assert "sequence accuracy" in out
    assert "256 pairs in" in out


def test_digits_by_place(tiny_run, command):
    code, out, _ = command(tiny_run.path, "--max-digits", "2", "--pairs", "64", "--batch-size", "64", "--digits")
    assert code == 0
    scores = evaluate_grid(ttm_jax.load(tiny_run.path), 2, 64, 64)
    rows = [line.split() for line in out.splitlines()]
    for name, score in scores.items():
        n, m = name.split("x")
        shown = [f"{100 * c / t:.1f}" for c, t in zip(score.digit_correct, score.digit_total, strict=True) if t]
        assert [n, "x", m, *shown] in rows
    assert "10³" in out
    assert "10⁴" not in out


def test_the_whole_grid_fits_a_terminal():
    full = Score(1000, 1000, 1000, (1000,) * 10, (1000,) * 10)
    console = Console(width=80, file=io.StringIO())
    console.print(grid_table({f"{n}x{m}": full for n in range(1, 6) for m in range(1, 6)}))
    text = console.file.getvalue()
    assert text.count("1000/1000") == 25
    assert text.count("99.6-100.0") == 25
    assert "…" not in text


def test_all_places_fit_a_terminal():
    console = Console(width=80, file=io.StringIO())
    console.print(digit_table({"5x5": Score(1000, 1000, 1000, (1000,) * 10, (1000,) * 10)}))
    (row,) = (line for line in console.file.getvalue().splitlines() if "5 x 5" in line)
    assert row.count("100.0") == 10


@pytest.fixture
def damaged(tiny_run, tmp_path):
    """A folder of things that are no checkpoint."""
    source = find_checkpoint(tiny_run.path)
    truncated = shutil.copytree(source, tmp_path / "truncated")
    array = max((truncated / "params").rglob("*"), key=lambda path: path.stat().st_size)
    array.write_bytes(array.read_bytes()[:100])
    foreign = shutil.copytree(source, tmp_path / "foreign")
    (foreign / "checksums.json").unlink()
    (foreign / "meta" / "metadata").write_text('{"format": "another"}')
    (tmp_path / "file").write_text("weights")
    (tmp_path / "empty").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("missing", "no such file or folder"),
        ("empty", "neither a checkpoint (a folder with params/ and meta/) nor a run folder with one"),
        ("file", "neither a checkpoint (a folder with params/ and meta/) nor a run folder with one"),
        ("foreign", "not of this library (format 'another'; known: ttm-multiplier-1, ttm-multiplier-torch-1)"),
        ("truncated", "is damaged: its checksum differs"),
    ],
)
def test_no_checkpoint_is_one_line(name, message, damaged, command):
    code, out, err = command(damaged / name, "--json")
    assert (code, out) == (2, "")
    assert err.startswith(f"python -m ttm_jax.evaluate: error: checkpoint {damaged / name}: ")
    assert err.endswith(f"{message}\n")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: checkpoint"),
        (["run", "--jsn"], "unknown argument --jsn; did you mean --json?"),
        (["run", "--pairs", "0"], "argument --pairs: must be a positive integer, got '0'"),
        (["run", "--pairs", "many"], "argument --pairs: must be a positive integer, got 'many'"),
        (["run", "--max-digits", "6"], "argument --max-digits: invalid choice: 6"),
        (["run", "--digits", "--json"], "argument --json: not allowed with argument --digits"),
        (["run", "more"], "unknown argument more"),
    ],
)
def test_bad_flags_are_one_line(arguments, message, command):
    code, out, err = command(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"python -m ttm_jax.evaluate: error: {message}")
    assert err.count("\n") == 1


def test_help_has_an_example(command):
    code, out, _ = command("--help")
    assert code == 0
    assert "example: python -m ttm_jax.evaluate " in out
