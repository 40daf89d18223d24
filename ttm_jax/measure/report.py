"""Numbers and tables for people, the same on the terminal and on the page."""

import textwrap
from dataclasses import dataclass
from typing import Any

from rich.table import Table as RichTable

NOT_MEASURED = "not measured"
LARGER = (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")
SMALLER = (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")


@dataclass(frozen=True)
class Table:
    """Cells as text, all but the first column aligned right."""

    title: str
    headings: list[str]
    rows: list[list[str]]

    def to_rich(self) -> RichTable:
        """For the terminal."""
        table = RichTable(title=self.title, title_justify="left", show_edge=False)
        for i, heading in enumerate(self.headings):
            width = max(map(len, [*(row[i] for row in self.rows), *heading.split()]), default=1)
            wrapped = "\n".join(textwrap.wrap(heading, width))  # headings wrap, cells do not
            table.add_column(wrapped, justify="right" if i else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """For the page: the title in bold, then the table."""
        lines = [self.headings, ["---", *["---:"] * (len(self.headings) - 1)], *self.rows]
        return "\n".join([f"**{self.title}**", "", *("| " + " | ".join(cells) + " |" for cells in lines)])


def digits(value: float) -> str:
    """Three significant digits, never as a power of ten: "1234", "12.3", "0.00123"."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.10f}".rstrip("0")


def scaled(value: float | None, unit: str) -> str:
    """A quantity with its decimal prefix, of which seconds have only the small: "263 GFLOP/s", "71.8 ms", "1,530 s"."""
    if value is None:
        return NOT_MEASURED
    prefixes = ((1, ""), *SMALLER) if unit == "s" else (*LARGER, (1, ""))
    reached = (pair for pair in prefixes if abs(value) >= 0.9995 * pair[0])
    factor, prefix = next(reached, prefixes[-1])
    return f"{digits(value / factor)} {prefix}{unit}"


def percent(share: float | None) -> str:
    """A share as "12.3 %"."""
    return NOT_MEASURED if share is None else f"{digits(100 * share)} %"


def median(timing: dict[str, Any] | None) -> str:
    """The median of a spread: "71.8 ms"."""
    return NOT_MEASURED if timing is None else scaled(timing["median_s"], "s")


def quartiles(timing: dict[str, Any] | None) -> str:
    """The quartiles of a spread: "70.1 - 73.3 ms"."""
    if timing is None:
        return NOT_MEASURED
    (low, unit), (high, high_unit) = (scaled(timing[f"quartile_{n}_s"], "s").split(" ") for n in (1, 3))
    return f"{low} - {high} {unit}" if unit == high_unit else f"{low} {unit} - {high} {high_unit}"


def times(ratio: float | None) -> str:
    """A ratio as "1.35x"."""
    return NOT_MEASURED if ratio is None else f"{digits(ratio)}x"


def peak(memory: dict[str, int] | None) -> str:
    """The peak of a program's memory: "272 MB"."""
    return NOT_MEASURED if memory is None else scaled(memory["peak"], "B")
