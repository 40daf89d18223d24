"""`hardware_choice.md`: what follows from the results, written between its two markers and nowhere else."""

import os
from pathlib import Path
from typing import Any

from ttm_jax.benchmarks.choice import choice
from ttm_jax.benchmarks.figures import history_figure
from ttm_jax.benchmarks.report import NOT_MEASURED, Table, median, scaled, times
from ttm_jax.benchmarks.results import FLAGS, SECTIONS, ResultError, result_path
from ttm_jax.hardware import UNKNOWN

BEGIN = "<!-- measured: begin; python -m ttm_jax.benchmark --page writes what is between these marks -->"
END = "<!-- measured: end -->"
TITLES = {
    "operations": "Operations",
    "training": "Training step",
    "batch_sizes": "Batch size",
    "history": "Length of the history",
    "unrolled": "Scanned and unrolled",
    "remat": "Rematerialisation",
}


def regenerate(page: Path, folder: Path, results: list[dict[str, Any]]) -> bool:
    """Writes what `results` say between the markers of `page`; True where that changed it.

    Raises:
        ResultError: if the page cannot be read or written, or has not both markers.
    """
    try:
        text = page.read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ResultError(f"--page {page}: it needs the line {BEGIN!r} and, after it, {END!r}")
        relative = Path(os.path.relpath(folder, page.parent or "."))
        new = f"{before}{BEGIN}\n\n{render(results, relative)}\n{END}{after}"
        if new != text:
            page.write_text(new, encoding="utf-8")
    except OSError as error:
        raise ResultError(f"--page {page}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ResultError(f"--page {page}: not UTF-8 text") from None
    return new != text


def render(results: list[dict[str, Any]], folder: Path) -> str:
    """The measured part of the page; `folder` is where the results are, seen from the page."""
    parts = ["## The choice", choice(results), "## The machines", machines(results).to_markdown()]
    if len(timed := [result for result in results if "operations" in result]) > 1:
        parts.append(side_by_side(timed).to_markdown())
    for result in results:
        path = result_path(folder, result["name"])
        parts += [f"## {result['name']}", f"All figures: [{path.name}]({path.as_posix()})."]
        for key in SECTIONS:
            parts += [f"### {TITLES[key]}", *_section(key, result.get(key), path)]
    return "\n\n".join(parts) + "\n"


def machines(results: list[dict[str, Any]]) -> Table:
    """What each device and its host are."""
    headings = ["", *(result["name"] for result in results)]
    facts = {
        "device": lambda r: f"{r['device']['count']} x {r['device']['kind']}",
        "device memory": lambda r: _memory(r["device"]["memory_bytes"], r),
        "processor": lambda r: f"{r['machine']['processor']} ({r['machine']['architecture']})",
        "cores, hardware threads, usable": lambda r: ", ".join(
            known(r["machine"][name]) for name in ("cores", "cpus", "usable_cpus")
        ),
        "caches": lambda r: caches(r["machine"]["caches"]),
        "instruction sets": lambda r: ", ".join(r["machine"]["instruction_sets"]) or UNKNOWN,
        "memory": lambda r: _memory(r["machine"]["memory_bytes"], r),
    }
    return Table("detected", headings, [[name, *(fact(result) for result in results)] for name, fact in facts.items()])


def caches(found: list[dict[str, Any]]) -> str:
    """Caches in a line: "L1 data 2 x 48 KiB, ..."."""
    parts = [f"L{c['level']} {c['kind']} {c['instances']} x {_kibibytes(c['bytes'])}" for c in found]
    return ", ".join(parts) or UNKNOWN


def side_by_side(results: list[dict[str, Any]]) -> Table:
    """The median of each operation on each device, and how many times as fast as on the first."""
    by_name = [{row["name"]: row for row in result["operations"]["rows"] if "skipped" not in row} for result in results]
    headings = ["operation", *(result["name"] for result in results)]
    headings += [f"{results[0]['name']} / {result['name']}" for result in results[1:]]
    rows = []
    for name in dict.fromkeys(name for rows_by_name in by_name for name in rows_by_name):
        found = [rows_by_name.get(name) for rows_by_name in by_name]
        first = found[0]
        ratios = [times(None if row is None or first is None else first["median_s"] / row["median_s"]) for row in found]
        rows.append([name, *(median(row) for row in found), *ratios[1:]])
    return Table("operations side by side, median", headings, rows)


def _section(key: str, section: dict[str, Any] | None, path: Path) -> list[str]:
    command = f"python -m ttm_jax.benchmark {FLAGS[key]}".strip()
    if section is None:
        return [f"{NOT_MEASURED.capitalize()}; `{command}` does."]
    parts = [table.to_markdown() for table in SECTIONS[key].tables(section)]
    if notes := SECTIONS[key].notes(section):
        parts.append(" ".join(notes))
    if key == "history":
        parts.append(f"![time and memory against the length of the history]({history_figure(path).as_posix()})")
    return [*parts, _origin(section)]


def _origin(section: dict[str, Any]) -> str:
    where = section["provenance"]
    commit = (
        UNKNOWN
        if where["commit"] is None
        else f"`{where['commit'][:7]}`" + ("+changes" if "+" in where["commit"] else "")
    )
    quick = " A quick run: few calls." if section["quick"] else ""
    return (
        f"`{where['command']}`, {where['machine']}, jax {where['jax']}, Python {where['python']}, commit {commit}, "
        f"{where['date'][:10]}.{quick}"
    )


def known(value: Any) -> str:
    """A detected fact, or "unknown"."""
    return UNKNOWN if value is None else str(value)


def _memory(count: int | None, result: dict[str, Any]) -> str:
    if count is None:
        return "the machine's" if result["device"]["platform"] == "cpu" else UNKNOWN
    return scaled(count, "B")


def _kibibytes(count: int) -> str:
    return f"{count // 1024:,} KiB" if count < 2**20 else f"{count / 2**20:g} MiB"
