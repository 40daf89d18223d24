"""The generated tables: those of the pages are what results/ say, and the command that writes them."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from ttm_jax import pages
from ttm_jax.metrics import wilson_interval

ROOT = Path(__file__).parent.parent


@pytest.fixture
def command(call_command):
    """`command(*arguments)` gives exit code, stdout and stderr."""
    return partial(call_command, pages.main)


@pytest.fixture
def checkout(tmp_path):
    """The pages and the results that they are written from."""
    for folder in ("results", "docs"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.png", "speed"))
    shutil.copy(ROOT / "README.md", tmp_path)
    return tmp_path


def edit(path, change):
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def table(checkout, name):
    """The cells of a table of the README, by row."""
    part = re.search(f"<!-- {name} -->(.*)<!-- /{name} -->", (checkout / "README.md").read_text(), re.DOTALL)[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.strip().splitlines()]
    return {row[0]: row[1:] for row in rows}


def test_the_pages_are_what_the_results_say(command):
    assert command("--root", ROOT, "--check") == (0, "", "")


def test_a_changed_result_is_noticed_and_written(checkout, command):
    def change(values):
        values["exact_match"]["2x2"]["correct"] = 400

    edit(checkout / "results/default/seed-3.json", change)
    assert command("--root", checkout, "--check") == (1, "not up to date: README.md\n", "")
    assert command("--root", checkout) == (0, "written: README.md\n", "")
    assert command("--root", checkout, "--check") == (0, "", "")
    cell = table(checkout, "accuracy")["2 x 2"][1]
    assert re.fullmatch(rf"\d+\.\d \({100 * 400 / 789:.1f} - [\d.]+\)", cell)


def test_one_run_has_its_interval(checkout, command):
    def change(values):
        values["exact_match"]["3x3"] = {"correct": 950, "total": 1000}

    edit(checkout / "results/five_digits/evaluation.json", change)
    command("--root", checkout)
    low, high = wilson_interval(950, 1000)
    assert table(checkout, "accuracy")["3 x 3"][-1] == f"95.0 ({100 * low:.1f} - {100 * high:.1f})"


def test_lengths_that_were_never_trained_have_no_figure(checkout, command):
    def change(values):
        values["training"]["config"]["data"]["max_digits"] = [4, 4]

    edit(checkout / "results/five_digits/evaluation.json", change)
    command("--root", checkout)
    found = table(checkout, "accuracy")
    assert found["5 x 5"][-1] == ""
    assert found["4 x 4"][-1] != ""


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "README.md").unlink(), "README.md: No such file or directory; --root names the checkout"),
        (lambda root: (root / "results/default/seed-1.json").unlink(), "results/default/seed-1.json: No such file"),
        (lambda root: (root / "results/default/seed-1.json").write_text("{"), "results/default/seed-1.json: not JSON"),
        (
            lambda root: (root / "README.md").write_text("# Mine\n"),
            "it needs the lines <!-- why --> and, after it",
        ),
    ],
)
def test_what_is_missing_is_one_line(checkout, command, damage, message):
    damage(checkout)
    code, out, err = command("--root", checkout)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
