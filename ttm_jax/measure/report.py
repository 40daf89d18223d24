"""Numbers and tables for people, the same on the terminal and on a page; and the parts of pages that are generated."""

import statistics
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table as RichTable

NOT_MEASURED = "not measured"
LARGER = (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")
SMALLER = (1e-3, "m"), (1e-6, "µ"), (1e-9, "n")

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Table:
    """Cells as text, all but the first column aligned right."""

    title: str
    headings: list[str]
    rows: list[list[str]]

    def to_rich(self) -> RichTable:
        """Make the table for the terminal."""
        table = RichTable(title=self.title, title_justify="left", show_edge=False)
        for i, heading in enumerate(self.headings):
            width = max(map(len, [*(row[i] for row in self.rows), *heading.split()]), default=1)
            wrapped = "\n".join(textwrap.wrap(heading, width))
            table.add_column(wrapped, justify="right" if i else "left", no_wrap=width <= 24)  # a reason may wrap
        for row in self.rows:
            table.add_row(*row)
        return table

    def to_markdown(self) -> str:
        """Write the table for a page: the title in bold, then the cells."""
        return f"**{self.title}**\n\n{markdown_table(self.headings, self.rows, '---:')}"


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]], rule: str = "---") -> str:
    """Write lines of "| cell | cell |", without a newline at the end; `rule` aligns all columns but the first."""
    lines = [f"| {' | '.join(headings)} |", f"|---{f'|{rule}' * (len(headings) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def put_block(text: str, name: str, new: str) -> str:
    """Return a page's text with a new block between <!-- name --> and <!-- /name -->; ValueError without them."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found_begin, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise ValueError(f"it needs the lines {begin} and, after it, {end}")
    return f"{before}{begin}\n{new}\n{end}{after}"


def write_changed(pages: Mapping[Path, str], check: bool = False) -> list[Path]:
    """Write the pages that are not as given, unless it only has to `check`; return their paths."""
    changed = [path for path, new in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != new]
    for path in () if check else changed:
        path.write_text(pages[path], encoding="utf-8")
    return changed


def digits(value: float) -> str:
    """Write three significant digits, never as a power of ten: "1234", "12.3", "0.00123"."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.10f}".rstrip("0")


def scaled(value: float | None, unit: str) -> str:
    """Write a quantity with its decimal prefix, for seconds only the small: "263 GFLOP/s", "71.8 ms", "1,530 s"."""
    if value is None:
        return NOT_MEASURED
    prefixes = ((1, ""), *SMALLER) if unit == "s" else (*LARGER, (1, ""))
    reached = (pair for pair in prefixes if abs(value) >= 0.9995 * pair[0])
    factor, prefix = next(reached, prefixes[-1])
    return f"{digits(value / factor)} {prefix}{unit}"


def percent(share: float | None) -> str:
    """Write a share as "12.3 %"."""
    return NOT_MEASURED if share is None else f"{digits(100 * share)} %"


def times(ratio: float | None) -> str:
    """Write a ratio as "1.35x"."""
    return NOT_MEASURED if ratio is None else f"{digits(ratio)}x"


def short_commit(commit: str | None) -> str:
    """Shorten a commit to seven digits, with "+changes" where it has any."""
    name, _, changes = (commit or "unknown").partition("+")
    return name[:7] + ("+changes" if changes else "")


def ratio(a: float | None, b: float | None) -> float | None:
    """Divide two figures; None where one is not known."""
    return None if a is None or b is None else a / b


def mean_and_range(shares: Sequence[float]) -> str:
    """Write percents of several runs: "94.7 (91.8 - 95.8)", or one number where all are equal."""
    mean, low, high = (f"{x:.1f}" for x in (statistics.mean(shares), min(shares), max(shares)))
    return mean if low == high else f"{mean} ({low} - {high})"


def median(row: Row | None) -> str:
    """Write the median of what was timed: "71.8 ms"; or why it was not run."""
    if row is not None and "skipped" in row:
        return f"not run: {row['skipped']}"
    return NOT_MEASURED if row is None else scaled(row["median_s"], "s")


def quartiles(row: Row | None) -> str:
    """Write the quartiles of what was timed: "70.1 - 73.3 ms"."""
    if row is None or "skipped" in row:
        return "-"
    (low, unit), (high, high_unit) = (scaled(row[f"quartile_{n}_s"], "s").split(" ") for n in (1, 3))
    return f"{low} - {high} {unit}" if unit == high_unit else f"{low} {unit} - {high} {high_unit}"


def planned(row: Row, what: str = "peak") -> int | None:
    """Return the bytes that the compiler planned for a program."""
    return (row.get("memory") or {}).get(what)


def planned_memory(row: Row, what: str = "peak") -> str:
    """Write what the compiler planned for a program: "272 MB"."""
    return scaled(planned(row, what), "B")
