"""The shipped checkpoints multiply and say where they come from. They are asked what is held out, always the same."""

import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import ttm_jax
from ttm_jax.demo import main as demo
from ttm_jax.display import MARKS
from ttm_jax.metrics import wilson_interval

ROOT = Path(__file__).parent.parent
CHECKPOINTS = ROOT / "checkpoints"
# Beside the lengths that have a mark: a little less than each has reached.
REACHED = {"multiplication": {"3x3": 0.95}, "five_digits": {"3x3": 0.99, "4x4": 0.97, "5x5": 0.94}}
PAIRS = 400


@cache
def load(name):
    return ttm_jax.load(CHECKPOINTS / name)


@pytest.fixture(params=REACHED)
def multiplier(request):
    return load(request.param)


@pytest.mark.parametrize(
    ("name", "length", "mark"),
    [(name, *mark) for name, reached in REACHED.items() for mark in {**MARKS, **reached}.items()],
)
def test_it_is_above_the_mark_on_held_out_pairs(name, length, mark):
    pairs_Px2 = ttm_jax.held_out_pairs(tuple(map(int, length.split("x"))), PAIRS)
    if length != "1x1":  # all of which are trained
        assert all(ttm_jax.is_held_out(a, b) for a, b in pairs_Px2.tolist())
    answers = load(name).multiply(*pairs_Px2.T)
    correct = sum(answer == a * b for answer, (a, b) in zip(answers, pairs_Px2.tolist(), strict=True))
    assert correct / len(pairs_Px2) > mark, f"{correct} of {len(pairs_Px2)}"


def test_the_results_are_its_own(multiplier):
    """Their intervals are those of their counts; of the first 3 x 3 pairs as many are right here, within 6 %."""
    result = json.loads((ROOT / f"results/{multiplier.path.name}/evaluation.json").read_text())
    for length, counts in result["exact_match"].items():
        low, high = wilson_interval(counts["correct"], counts["total"])
        assert result["interval_95"][length] == pytest.approx([low, high])
    pairs_Px2 = ttm_jax.held_out_pairs((3, 3), PAIRS)
    right = np.mean([x == a * b for x, (a, b) in zip(multiplier.multiply(*pairs_Px2.T), pairs_Px2, strict=True)])
    counts = result["exact_match"]["3x3"]
    assert right == pytest.approx(counts["correct"] / counts["total"], abs=0.06)


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
