"""The pages say what is so: their code runs, their commands and links exist."""

import importlib
import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import pytest

from ttm_jax.measure import ablations, pages
from ttm_jax.measure.studies import STUDIES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "hardware_choice.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("configs/*/*.toml")),
    *sorted(ROOT.glob("results/**/*.md")),
]


@pytest.mark.parametrize("seed", pages.SEEDS)
def test_the_marks_are_met_by_the_results(seed):
    result = json.loads((ROOT / f"results/default/seed-{seed}.json").read_text())
    for length, mark in {"1x1": 0.95, "2x1": 0.90, "2x2": 0.85, "3x2": 0.80}.items():
        counts = result["exact_match"][length]
        assert counts["correct"] / counts["total"] > mark


def blocks(page):
    """The Python code of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_first_example_gives_what_it_says(monkeypatch):
    monkeypatch.chdir(ROOT)
    *setup, product, held_out = blocks("README.md")[0].strip().splitlines()
    names = {}
    exec("\n".join(setup), names)  # our own README
    for line in (product, held_out):
        code, _, said = line.partition("  # ")
        assert str(eval(code, names)) == re.split(":", said)[0], code


@pytest.mark.parametrize(("page", "name"), [("README.md", "Classifier"), ("docs/parity.md", "TorchClassifier")])
def test_the_model_of_ones_own_runs(page, name):
    (code,) = (block for block in blocks(page) if f"class {name}(" in block)
    names = {}
    exec(code, names)  # our own pages
    assert names["logits"].shape == (2, 8, 10)
    assert names["memory"].shape == (2, 96, 128)


def test_the_originals_weights_are_loaded_as_the_page_says():
    """They give the original's outputs, and a model of one's own runs from them."""
    (code,) = (block for block in blocks("docs/your-model.md") if "from_scenic" in block)
    names = {}
    exec(code, names)  # our own page
    assert names["difference"] < 1e-5
    assert names["variables"]["params"].keys() == {"machine", "Dense_0"}
    assert names["logits"].shape[-1] == 10


@pytest.mark.slow  # a dozen compilations
def test_the_page_on_your_model_runs_from_top_to_bottom():
    """Each statement compiles on its own; what it computes is tested with the machine."""
    names = {}
    with jax.numpy_rank_promotion("allow"):  # as for its reader
        exec(
            "\n".join(code for code in blocks("docs/your-model.md") if "from_scenic" not in code), names
        )  # our own page
    assert names["memories"].shape == (4, 6, 8, 16)
    assert names["outputs"].shape == (3, 6, 4, 16)


def documented_flags():
    """Of each command that is written in a page or a config: every flag that is shown with it."""
    flags = {}
    for path in PAGES:
        text = path.read_text(encoding="utf-8").replace("\n#", "\n")
        for module, arguments in re.findall(r"python -m ((?:ttm_jax|ttm_torch|parity)[\w.]*)([^`\n]*)", text):
            if module == "ttm_jax.evaluate" and "text" in arguments:
                module = "ttm_jax.text.evaluate"  # which it hands on to
            if module == "ttm_jax.train" and "text/" in arguments:
                module = "ttm_jax.train --config text/quick"  # its keys are those of the task
            flags.setdefault(module, set()).update(re.findall(r"(?<!\S)--[\w.-]*\w", arguments.partition("#")[0]))
    return flags


@pytest.mark.parametrize("module", documented_flags())
def test_commands_have_the_flags_that_are_shown(module, monkeypatch, capsys):
    name, *arguments = module.split()
    monkeypatch.setattr(sys, "argv", [name, *arguments, "--help"])
    command = importlib.import_module(name)
    if hasattr(command, "__path__"):
        command = importlib.import_module(f"{name}.__main__")
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 0
    assert documented_flags()[module] <= set(re.findall(r"--[\w.-]*\w", capsys.readouterr().out))


def test_the_other_commands_exist():
    for module in set(re.findall(r"python -m (\w+)", README)):
        assert importlib.util.find_spec(module) is not None, module


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.suffix == ".md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


@pytest.mark.parametrize(
    "study", [study for study in STUDIES.values() if (ROOT / f"results/{study.results}.json").exists()]
)
def test_the_ablations_are_those_of_the_results(study):
    path = ROOT / f"results/{study.results}.json"
    rows = ablations.rows_of(study, ablations.load_runs(study, path))
    assert path.with_suffix(".md").read_text() == ablations.document(study, rows)
