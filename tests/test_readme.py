"""The README says what is so: its table is that of the results, its code runs, its commands exist."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_is_that_of_the_results():
    result = json.loads((ROOT / "results/quick/evaluation.json").read_text())
    rows = re.findall(r"^\| (\d) x (\d) \| ([\d.]+) % \| ([\d.]+) - ([\d.]+) \| (\d+) / (\d+) \|$", README, re.M)
    assert len(rows) == 6
    for n, m, percent, low, high, correct, total in rows:
        counts = result["exact_match"][f"{n}x{m}"]
        assert (int(correct), int(total)) == (counts["correct"], counts["total"])
        assert percent == f"{100 * counts['correct'] / counts['total']:.1f}"
        assert [low, high] == [f"{100 * bound:.1f}" for bound in result["interval_95"][f"{n}x{m}"]]


def test_the_marks_are_met_by_the_results():
    result = json.loads((ROOT / "results/quick/evaluation.json").read_text())
    for length, mark in {"1x1": 0.95, "2x1": 0.90, "2x2": 0.85, "3x2": 0.80}.items():
        counts = result["exact_match"][length]
        assert counts["correct"] / counts["total"] > mark


def test_the_model_of_ones_own_runs():
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class Classifier" in block)
    names = {}
    exec(code, names)  # our own README
    assert names["logits"].shape == (2, 8, 10)
    assert names["memory"].shape == (2, 96, 128)


@pytest.mark.parametrize("module", sorted(set(re.findall(r"python -m ([\w.]+)", README))))
def test_commands_exist(module):
    assert importlib.util.find_spec(module) is not None


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)]+)\)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()
