"""docs/checklist.md as data."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
_ITEM = re.compile(r"- \[(?P<box>[ x])\] \*\*(?P<number>\d+\.\d+) (?P<title>[^*]+)\.\*\* (?P<condition>.+)")
_FIELD = re.compile(r"  - (?P<name>Test|Answer|Resolved): (?P<text>.+)")


class Item(NamedTuple):
    """An item of the page.

    Attributes:
        done: whether its box is ticked.
        condition: what has to hold.
        fields: "Test", "Answer" and, where a contradiction had to be resolved, "Resolved".
        line: where it begins.
    """

    number: str
    title: str
    done: bool
    condition: str
    fields: dict[str, str]
    line: int

    @property
    def tests(self) -> list[str]:
        """Named tests, as pytest takes them."""
        return re.findall(r"`([^`]+)`", self.fields.get("Test", ""))

    @property
    def figures(self) -> list[str]:
        """What is bold in the answer: measured anew by test_figures.py."""
        return re.findall(r"\*\*(.+?)\*\*", self.fields.get("Answer", ""))


def parse_items(text: str) -> list[Item]:
    """The items in the order of the page.

    Raises:
        ValueError: for what is neither an item nor one of its lines, naming the line.
    """
    items: list[Item] = []
    for line, content in _joined_lines(text[text.index("## 1. ") :], text.count("\n", 0, text.index("## 1. ")) + 1):
        if content.startswith("## "):
            continue
        if found := _ITEM.fullmatch(content):
            number, title, condition = found["number"], found["title"], found["condition"]
            items.append(Item(number, title, found["box"] == "x", condition, {}, line))
        elif items and (found := _FIELD.fullmatch(content)) and found["name"] not in items[-1].fields:
            items[-1].fields[found["name"]] = found["text"]
        else:
            raise ValueError(f"docs/checklist.md:{line}: neither an item nor one of its lines: {content}")
    return items


def _joined_lines(text: str, first: int) -> list[tuple[int, str]]:
    """Number and text of each line that is not empty, with the indented lines that continue it."""
    joined: list[tuple[int, str]] = []
    for line, content in enumerate(text.split("\n"), first):
        if content.startswith("  ") and not content.startswith("  - ") and joined:
            number, begun = joined.pop()
            joined.append((number, f"{begun} {content.strip()}"))
        elif content:
            joined.append((line, content))
    return joined


@pytest.fixture(scope="session")
def page() -> str:
    return (ROOT / "docs/checklist.md").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def parse_checklist() -> Callable[[str], list[Item]]:
    return parse_items


@pytest.fixture(scope="session")
def checklist(page) -> dict[str, Item]:
    """The items by number."""
    return {item.number: item for item in parse_items(page)}
