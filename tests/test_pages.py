"""The generated tables: those of the pages are what results/ say, and the command that writes them."""

import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest

from ttm_jax.measure import pages
from ttm_jax.statistics import wilson_interval

ROOT = Path(__file__).parent.parent
LARGER, DEFAULT, PERFORMANCE = "results/larger_operands.md", "results/default/README.md", "docs/performance.md"
XEON = "hardware/intel-r-xeon-r-processor-family-6-model-207-2-cores"
EPYC = "hardware/amd-epyc-family-25-model-1-2-cores"


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


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def table(checkout, name):
    """The cells of a table of the README, by row."""
    part = re.search(f"<!-- {name} -->(.*)<!-- /{name} -->", (checkout / "README.md").read_text(), re.DOTALL)[1]
    rows = map(cells_of, part.strip().splitlines())
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


# A figure of a result that is changed: its file, where in it, the new value; and a cell that has to follow: page,
# beginning of its row, heading of its column, what it has then.
CHANGES = [
    (
        "default/no-memory-1",
        ("exact_match", "3x2", "correct"),
        1000,
        "docs/training.md",
        "| trained without",
        "3 x 2",
        r"100\.0\)",
    ),
    (
        "five_digits/evaluation",
        ("exact_match", "4x5", "correct"),
        123,
        LARGER,
        "| 4 | 100.0 (99.6",
        "x 5",
        r"^12\.3 \(",
    ),
    ("five_digits/evaluation", ("exact_match", "4x4", "correct"), 500, LARGER, "| [`five_", "4 x 4", r"^50\.0 \("),
    (
        "five_digits/evaluation",
        ("digits", "5x5", "correct", 6),
        500,
        LARGER,
        "| `five_digits` | 5 x 5",
        "10⁶",
        r"^50\.0 \(",
    ),
    ("five_digits/diagnosis", ("lengths", "5x5", "causes", "sum wrong"), 77, LARGER, "| [`five_", "sum wrong", "^77$"),
    ("default/runs", (1, "exact_match", "3x3", "correct"), 64, DEFAULT, "| default-1", "3x3, %", "^25.0$"),
    ("default/tried", (1, "exact_match", "3x2", "correct"), 64, DEFAULT, "| `data.max_", "3 x 2", "^12.5$"),
    (
        "quick/two_commits",
        ("seeds", 0, "3x2", 1, "correct"),
        256,
        "results/quick_variants.md",
        "| 0 |",
        "3 x 2 at `2c6",
        "50.0",
    ),
    ("parity", ("comparisons", 137, "difference"), 0.5, "docs/parity.md", "| `layers/att", "difference", "5.0e-01"),
    (XEON, ("training", "rows", 1, "undivided", "median_s"), 1e3, PERFORMANCE, "| Intel(R)", "time", r"^0\.000\d+x$"),
    (XEON, ("batch_sizes", "rows", 7, "examples_per_s"), 5, PERFORMANCE, "| Intel(R)", "throughput", "5 examples/s"),
    (XEON, ("unrolled", "rows", 2, "scan, divided", "compile_s"), 1e-3, PERFORMANCE, "| Intel(R)", "compile", r",\d+x"),
    (
        EPYC,
        ("history", "streaming", -1, "transformer", "median_s"),
        0.5,
        PERFORMANCE,
        "| AMD EPYC (",
        "Transformer",
        "500 ms",
    ),
]


@pytest.mark.parametrize(("name", "keys", "value", "page", "row", "column", "text"), CHANGES)
def test_a_figure_stands_in_its_cell(checkout, command, name, keys, value, page, row, column, text):
    command("--root", checkout)
    before = (checkout / page).read_text().splitlines()

    def change(found):
        for key in keys[:-1]:
            found = found[key]
        found[keys[-1]] = value

    edit(checkout / f"results/{name}.json", change)
    command("--root", checkout)
    after = (checkout / page).read_text().splitlines()
    changed = [at for at, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]]
    at = next(at for at in changed if after[at].startswith(row))
    head = next(line for line in range(at, 0, -1) if after[line].startswith("|---")) - 1
    cells = dict(zip(cells_of(after[head]), cells_of(after[at]), strict=True))
    (cell,) = (cell for heading, cell in cells.items() if heading.startswith(column))
    assert re.search(text, cell)
    differing = [new for old, new in zip(cells_of(before[at]), cells_of(after[at]), strict=True) if old != new]
    assert differing == [cell], "no other cell of the row follows from it"


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
