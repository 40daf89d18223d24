"""The shipped checkpoints multiply and say where they come from. They are asked what is held out, always the same."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import ttm_jax
from ttm_jax.multiplication.demo.command import main as demo
from ttm_jax.multiplication.diagnose import parse_length
from ttm_jax.multiplication.scores import answer_pairs, score_answers
from ttm_jax.multiplication.task import MARKS
from ttm_jax.statistics import wilson_interval

ROOT = Path(__file__).parent.parent
# Beside the lengths that have a mark: a little less than each has reached.
REACHED = {
    "multiplication": {"3x3": 0.995, "4x4": 0.995, "5x5": 0.98},
    "five_digits": {"3x3": 0.99, "4x4": 0.97, "5x5": 0.94},
}
PAIRS = 256
SCORED = ("1x4", "3x3")  # of which all pairs are answered again; with -m slow all pairs of the longest as well


@cache
def load(name):
    return ttm_jax.load(name)


@pytest.fixture(params=REACHED)
def multiplier(request):
    return load(request.param)


@pytest.mark.parametrize(
    ("name", "length", "mark"),
    [
        (name, *mark)
        for name, reached in REACHED.items()
        for mark in {**MARKS, **reached}.items()
        if mark[0] not in SCORED
    ],
)
def test_it_is_above_the_mark_on_held_out_pairs(name, length, mark):
    pairs_Px2 = ttm_jax.held_out_pairs(parse_length(length), PAIRS)
    if length != "1x1":  # all of which are trained
        assert all(ttm_jax.is_held_out(a, b) for a, b in pairs_Px2.tolist())
    answers = load(name).multiply(*pairs_Px2.T)
    correct = sum(answer == a * b for answer, (a, b) in zip(answers, pairs_Px2.tolist(), strict=True))
    assert correct / len(pairs_Px2) > mark, f"{correct} of {len(pairs_Px2)}"


def results(multiplier, name):
    return json.loads((ROOT / "results" / multiplier.path.name / name).read_text())


@pytest.mark.parametrize("length", [*SCORED, pytest.param("5x5", marks=pytest.mark.slow)])
def test_the_results_are_its_own(length, multiplier):
    """Answers and digits right of all pairs, but for three that rounding elsewhere may change; and above the mark."""
    found = results(multiplier, "evaluation.json")
    pairs_Px2 = ttm_jax.held_out_pairs(parse_length(length), 1000)
    assert all(ttm_jax.is_held_out(a, b) for a, b in pairs_Px2.tolist())
    num_steps = sum(parse_length(length)) + 1  # with the end
    score = score_answers(*answer_pairs(multiplier, pairs_Px2, num_steps))
    assert score.correct / score.total > REACHED[multiplier.path.name].get(length, 0)
    places = len(found["digits"][length]["total"])
    assert found["exact_match"][length]["total"] == score.total == len(pairs_Px2)
    assert found["exact_match"][length]["correct"] == pytest.approx(score.correct, abs=3)
    assert tuple(found["digits"][length]["total"]) == tuple(filter(None, score.digit_total))
    assert found["digits"][length]["correct"] == pytest.approx(score.digit_correct[:places], abs=3)
    assert found["provenance"]["command"] == f"python -m ttm_jax.evaluate checkpoints/{multiplier.path.name} --json"


def test_intervals_are_those_of_the_counts(multiplier):
    found = results(multiplier, "evaluation.json")
    for length, counts in found["exact_match"].items():
        low, high = wilson_interval(counts["correct"], counts["total"])
        assert found["interval_95"][length] == pytest.approx([low, high])
        digits = found["digits"][length]
        intervals = [wilson_interval(*pair) for pair in zip(digits["correct"], digits["total"], strict=True)]
        assert np.array(digits["interval_95"]) == pytest.approx(np.array(intervals))


def test_the_diagnosis_is_that_of_the_evaluation(multiplier):
    """As many wrong answers, of as many pairs."""
    found, evaluated = results(multiplier, "diagnosis.json"), results(multiplier, "evaluation.json")
    for length, row in found["lengths"].items():
        counts = evaluated["exact_match"][length]
        assert (row["pairs"], row["pairs"] - row["wrong"]) == (counts["total"], counts["correct"])
        assert sum(row["first_wrong_place"]) == sum(row["causes"].values()) == row["wrong"]


@pytest.mark.parametrize("problem", ["7*8", "16*7", "35*37", "906*87", "779*520", "90687*87489"])
def test_the_demo_is_right(problem, capsys):
    assert demo([problem, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["correct"] is True


def test_it_says_where_it_comes_from(multiplier):
    meta = json.loads((multiplier.path / "meta/metadata").read_text())
    assert {"commit", "machine", "jax", "date", "command"} <= meta["provenance"].keys()
    assert not meta["provenance"]["commit"].endswith("+changes")
    assert meta["config"]["train"]["seed"] == 0
    assert meta["progress"]["step"] > 0


def test_it_is_small(multiplier):
    assert sum(path.stat().st_size for path in multiplier.path.rglob("*") if path.is_file()) < 20e6
