"""What the comparisons found: a table for people, an object for programs."""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from parity.compare import DEFINITION, Row

Found = Mapping[str, Sequence[Row]]  # by the name of the case


def print_report(found: Found, notes: Sequence[str]) -> None:
    """Print the table, what a difference is, notes and the summary; plain and unbroken outside a terminal."""
    console = Console(width=None if sys.stdout.isatty() else 400, highlight=False, soft_wrap=True)
    console.print(_table(found))
    for line in (f"difference: {DEFINITION}", *notes, summary(found)):
        console.print(line, markup=False)


def summary(found: Found) -> str:
    """Say in one line how many comparisons are in bounds, and which are not."""
    rows = [(case, row) for case, rows in found.items() for row in rows]
    compared, changed = ([(case, row) for case, row in rows if row.above is above] for above in (False, True))
    parts = [f"{sum(row.ok for _, row in compared)} of {len(compared)} comparisons in bounds"]
    if changed:
        parts.append(f"{sum(row.ok for _, row in changed)} of {len(changed)} mutations caught")
    bad = [
        f"{case} ({row.what}, at {row.at})" if row.at else f"{case} ({row.what})" for case, row in rows if not row.ok
    ]
    return ", ".join(parts) + (f"; NOT OK: {'; '.join(bad)}" if bad else "")


def is_ok(found: Found) -> bool:
    return all(row.ok for rows in found.values() for row in rows)


def as_json(found: Found) -> dict[str, Any]:
    """Return each comparison with where it differs most; null for a difference that is not finite, as JSON has none."""
    return {
        "ok": is_ok(found),
        "summary": summary(found),
        "definition": DEFINITION,
        "comparisons": [
            {
                "case": case,
                "what": row.what,
                "difference": row.difference if math.isfinite(row.difference) else None,
                "must_be": "above" if row.above else "at most",
                "bound": row.bound,
                "at": row.at,
                "ok": row.ok,
            }
            for case, rows in found.items()
            for row in rows
        ],
    }


def _table(found: Found) -> Table:
    table = Table(box=box.SIMPLE_HEAD if sys.stdout.isatty() else None, pad_edge=False)
    for heading, justify in (("case", "left"), ("compared", "left"), ("difference", "right"), ("bound", "right")):
        table.add_column(heading, justify=justify, overflow="fold")
    table.add_column("ok")
    for case, rows in found.items():
        for row in rows:
            verdict = "[green]yes[/]" if row.ok else "[bold red]NO[/]"
            bound = f"{'>' if row.above else '<='} {row.bound:.0e}" if row.bound else ("> 0" if row.above else "0")
            table.add_row(case, row.what, f"{row.difference:.1e}", bound, verdict)
    return table
