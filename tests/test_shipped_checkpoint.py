"""The shipped checkpoints multiply and say where they come from. They are asked what is held out, always the same."""

import json
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import ttm_jax
from ttm_jax.answers import answer_pairs, score_answers
from ttm_jax.demo import main as demo
from ttm_jax.diagnose import CAUSES, parse_length
from ttm_jax.display import MARKS
from ttm_jax.metrics import exact_match, wilson_interval
from ttm_jax.multiplication import place_name

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
    pairs_Px2 = ttm_jax.held_out_pairs(parse_length(length), PAIRS)
    if length != "1x1":  # all of which are trained
        assert all(ttm_jax.is_held_out(a, b) for a, b in pairs_Px2.tolist())
    answers = load(name).multiply(*pairs_Px2.T)
    correct = sum(answer == a * b for answer, (a, b) in zip(answers, pairs_Px2.tolist(), strict=True))
    assert correct / len(pairs_Px2) > mark, f"{correct} of {len(pairs_Px2)}"


def results(multiplier, name):
    return json.loads((ROOT / "results" / multiplier.path.name / name).read_text())


def test_the_results_are_its_own(multiplier):
    """Answers and digits right of all pairs of three lengths, but for three that rounding elsewhere may change."""
    found = results(multiplier, "evaluation.json")
    for length in ("1x4", "3x3", "5x5"):
        pairs_Px2 = ttm_jax.held_out_pairs(parse_length(length), 1000)
        score = score_answers(*answer_pairs(multiplier, pairs_Px2))
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
    """As many wrong answers, of as many pairs; the page quotes it."""
    found, evaluated = results(multiplier, "diagnosis.json"), results(multiplier, "evaluation.json")
    page = (ROOT / "results/larger_operands.md").read_text(encoding="utf-8")
    name = multiplier.path.name
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith(f"| [{name}]({name}/diagno")]
    assert len(rows) == 2
    for length, row in found["lengths"].items():
        counts = evaluated["exact_match"][length]
        assert (row["pairs"], row["pairs"] - row["wrong"]) == (counts["total"], counts["correct"])
        assert sum(row["first_wrong_place"]) == sum(row["causes"].values()) == row["wrong"]
    for _, digits, wrong, first, *causes, carries in rows:
        row = found["lengths"][digits.replace(" ", "")]
        assert wrong == f"{row['wrong']:,} of {row['pairs']:,}"
        places = [f"{place_name(place)} {count}" for place, count in enumerate(row["first_wrong_place"]) if count]
        assert first == ", ".join(places)
        assert causes == [str(row["causes"][cause]) for cause in CAUSES]
        assert carries == f"{100 * sum(row['carries']['correct']) / sum(row['carries']['total']):.1f} %"


def test_of_operands_too_long_it_has_products_by_0_right():
    """As the README and the page of larger operands say."""
    for length in ((1, 4), (5, 1)):
        pairs_Px2 = ttm_jax.held_out_pairs(length, 300)
        right = exact_match(*answer_pairs(load("multiplication"), pairs_Px2))
        assert right.any()
        assert not right[pairs_Px2.all(axis=1)].any()


def page_rows(marker):
    """The cells of the tables between two markers of the page, without their headings."""
    page = (ROOT / "results/larger_operands.md").read_text(encoding="utf-8")
    part = re.search(f"<!-- {marker} -->(.*)<!-- /{marker} -->", page, re.DOTALL)[1]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line]


def with_interval(correct, total, interval):
    low, high = interval
    return f"{100 * correct / total:.1f} ({100 * low:.1f} - {100 * high:.1f})"


def test_the_page_of_larger_operands_has_the_grids_and_digits():
    found = {name: json.loads((ROOT / f"results/{name}/evaluation.json").read_text()) for name in REACHED}
    rows = page_rows("grid")
    for name, table in zip(REACHED, (rows[:7], rows[7:]), strict=True):
        assert table[0][0] == f"`{name}`"
        counts, intervals = found[name]["exact_match"], found[name]["interval_95"]
        for n, *cells in table[2:]:
            for m, cell in enumerate(cells, 1):
                row = counts[f"{n}x{m}"]
                interval = with_interval(row["correct"], row["total"], intervals[f"{n}x{m}"])
                assert cell == f"{interval} of {row['total']:,}"
    for name, length, *cells in page_rows("digits")[2:]:
        digits = found[name]["digits"][length.replace(" ", "")]
        columns = zip(digits["correct"], digits["total"], digits["interval_95"], strict=True)
        assert [cell for cell in cells if cell] == [with_interval(*column) for column in columns]


def test_the_page_of_larger_operands_quotes_the_diagnoses():
    page = " ".join((ROOT / "results/larger_operands.md").read_text(encoding="utf-8").split())
    machine, product = (json.loads((ROOT / f"results/{n}/diagnosis.json").read_text())["lengths"] for n in REACHED)

    def wrong(carries):
        return [total - correct for correct, total in zip(carries["correct"], carries["total"], strict=True)]

    units, tens, hundreds, *others = wrong(machine["3x3"]["carries"])
    assert f"it has {hundreds} wrong, where {machine['3x3']['wrong']} answers are wrong in all" in page
    assert f"it has wrong, {hundreds / 10:.1f} %; of no other column more than 0.5 %" in page
    assert max(units, tens, *others) == 5
    assert f"in {product['5x5']['causes']['carry wrong']} of {product['5x5']['wrong']} wrong answers the carry" in page
    assert f"of the carries out of the 10⁴ it has {wrong(product['5x5']['carries'])[4] / 10:.1f} % wrong" in page
    reads = [[f"{100 * share:.1f} %" for share in found["3x3"]["read"].values()] for found in (machine, product)]
    assert f"gives {reads[0][0]} and {reads[0][1]} of its weights to their digits and {reads[0][2]} to memory" in page
    assert f"`five_digits` {reads[1][0]}, {reads[1][1]} and {reads[1][2]}." in page


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
