"""docs/checklist.md is whole: every item has a condition, an answer, and tests that exist."""

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ITEMS_OF_PHASES = (9, 13, 9, 10, 5, 19, 5, 11, 11, 22, 7, 10)
NUMBERS = [f"{phase}.{n}" for phase, count in enumerate(ITEMS_OF_PHASES, 1) for n in range(1, count + 1)]


@pytest.fixture(scope="module")
def collected(checklist, environment):
    """All tests in the files that the page names, as pytest collects them; with and without their parameters."""
    files = {test.partition("::")[0] for item in checklist.values() for test in item.tests}
    there = sorted(file for file in files if (ROOT / file).is_file())
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider", *there]
    shown = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    found = {line for line in shown.stdout.splitlines() if "::" in line}
    return found | {test.partition("[")[0] for test in found}


@pytest.fixture(scope="module")
def faults(collected, parse_checklist):
    """What is wrong with a page, a line each."""

    def find(text: str) -> list[str]:
        items = parse_checklist(text)
        numbers = [item.number for item in items]
        wrong = [] if numbers == NUMBERS else [f"items have to be 1.1 to 12.10, each once, in order: {numbers}"]
        for item in items:
            for name in ("Test", "Answer"):
                if not re.search(r"\w", item.fields.get(name, "").replace("_", "")):
                    wrong.append(f"{item.number} has no {name}")
            if not item.tests:
                wrong.append(f"{item.number} names no test")
            wrong += [
                f"{item.number} names {test}, which does not exist" for test in item.tests if test not in collected
            ]
        return wrong

    return find


def test_every_item_has_answer_and_tests_that_exist(page, faults):
    assert faults(page) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (r"  - Answer: Digits are a `range`.*\n", "", "2.2 has no Answer"),
        (r"Digits are a `range`.*", "_____________", "2.2 has no Answer"),
        (r"  - Test: .*\[2\.2\]`\n", "", "2.2 has no Test"),
        (r"test_expression\[2\.2\]", "test_expression[2.99]", "test_expression[2.99], which does not exist"),
        (r"::test_folders`", "::test_folder`", "::test_folder, which does not exist"),
        (r"test_conditions.py::test_folders`", "test_condition.py::test_folders`", "which does not exist"),
        (r"`[^`]*::test_folders`.*", "seen by eye", "1.2 names no test"),
        (r"- \[x\] \*\*2\.2 ", "- [x] **2.3 ", "items have to be 1.1 to 12.10"),
    ],
)
def test_a_spoilt_page_is_found(old, new, fault, page, faults):
    spoilt, changed = re.subn(old, new, page, count=1)
    assert changed
    assert any(fault in line for line in faults(spoilt))


@pytest.mark.parametrize(("old", "new"), [("  - Test: ", "  - Tset: "), ("- [x] ", "- [y] "), ("## 2. ", "Phase 2")])
def test_a_line_of_no_known_form_is_named(old, new, page, parse_checklist):
    line = page[: page.index(old)].count("\n") + 1
    with pytest.raises(ValueError, match=f"checklist.md:{line}: neither an item nor one of its lines: "):
        parse_checklist(page.replace(old, new, 1))


def test_the_phases(page):
    assert re.findall(r"^## (\d+)\. \w", page, re.MULTILINE) == [str(n) for n in range(1, 13)]


def test_expressions_of_the_page_are_those_evaluated(checklist):
    """What a condition says in code is part of an expression of its item, as typed."""
    tree = ast.parse((ROOT / "tests/checklist/test_expressions.py").read_text(encoding="utf-8"))
    (expressions,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "EXPRESSIONS"
    )
    for number, evaluated in expressions.items():
        item = checklist[number]
        assert f"tests/checklist/test_expressions.py::test_expression[{number}]" in item.tests
        for code in re.findall(r"`([^`]+)`", item.condition):
            assert any(code in expression for expression in evaluated), f"{number}: {code}"


def test_the_checklist_can_be_found():
    assert "(docs/checklist.md)" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_the_page_points_at_exists(page):
    for link in re.findall(r"\]\((?!http)([^)]+)\)", page):
        assert (ROOT / "docs" / link).exists(), link
    for name in re.findall(r"`(?:python -m )?((?:ttm_jax|ttm_torch|parity|results|tests)/[\w./]*)", page):
        assert (ROOT / name).exists(), name
    for name in set(re.findall(r"(?:ttm_jax|ttm_torch|parity)(?:\.\w+)+", page)):
        assert pkgutil.resolve_name(name)
