"""`hardware_choice.md`, what follows from the results, between its two markers; and a page of all figures a device."""

import os
from pathlib import Path
from typing import Any

from ttm_jax.hardware.detect import UNKNOWN
from ttm_jax.measure.choice import choice
from ttm_jax.measure.figures import history_figure
from ttm_jax.measure.markdown import markdown_table
from ttm_jax.measure.report import NOT_MEASURED, Table, median, percent, scaled
from ttm_jax.measure.results import FLAGS, SECTIONS, ResultError, result_path

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


def regenerate(page: Path, folder: Path, results: list[dict[str, Any]]) -> list[Path]:
    """Writes what `results` say between the markers of `page`, and a page for each device; gives those that changed.

    Raises:
        ResultError: if a page cannot be read or written, or `page` has not both markers.
    """
    try:
        text = page.read_text(encoding="utf-8")
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not begin or not end:
            raise ResultError(f"--page {page}: it needs the line {BEGIN!r} and, after it, {END!r}")
        relative = Path(os.path.relpath(folder, page.parent or "."))
        pages = {page: f"{before}{BEGIN}\n\n{render(results, relative)}\n{END}{after}"}
        pages |= {device_page(folder, result): render_device(result) for result in results}
        changed = [path for path, new in pages.items() if not path.exists() or path.read_text(encoding="utf-8") != new]
        for path in changed:
            path.write_text(pages[path], encoding="utf-8")
    except OSError as error:
        raise ResultError(f"--page {page}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ResultError(f"--page {page}: not UTF-8 text") from None
    return changed


def device_page(folder: Path, result: dict[str, Any]) -> Path:
    """Where all that was measured on a device is written for people."""
    return result_path(folder, result["name"]).with_suffix(".md")


def render(results: list[dict[str, Any]], folder: Path) -> str:
    """The measured part of the page; `folder` is where the results are, seen from the page."""
    return "\n\n".join(["## The choice", choice(results), "## The devices", devices(results, folder)]) + "\n"


def devices(results: list[dict[str, Any]], folder: Path) -> str:
    """What each device reaches, a row each, with a link to all that was measured on it."""
    rows = []
    for result in results:
        training, batches, history = (result.get(key) for key in ("training", "batch_sizes", "history"))
        best = next((row for row in batches["rows"] if row["batch_size"] == batches["best"]), None) if batches else None
        shares = [percent(row.get("flops_fraction")) for row in training["rows"]] if training else [NOT_MEASURED]
        cells = [
            NOT_MEASURED if training is None else scaled(training["rows"][0].get("ceiling_flops_per_s"), "FLOP/s"),
            ", ".join(shares),
            NOT_MEASURED if best is None else f"{best['batch_size']}: {best['examples_per_s']:,.0f} examples/s",
            NOT_MEASURED if history is None else median(history["streaming"][0]["machine"]),
        ]
        rows.append([f"[{result['name']}]({device_page(folder, result).as_posix()})", *cells])
    headings = ["", "a large product", "a training step, of that", "best batch", "a streaming step"]
    return markdown_table(headings, rows)


def render_device(result: dict[str, Any]) -> str:
    """The page of a device: what it is, and every figure."""
    path = result_path(Path(), result["name"])
    parts = [
        f"# {result['name']}",
        f"Written by `python -m ttm_jax.benchmark --page` from [{path.name}]({path.name}); "
        "[README.md](README.md) says how it was measured.",
        machine(result).to_markdown(),
    ]
    for key in SECTIONS:
        parts += [f"## {TITLES[key]}", *_section(key, result.get(key), path)]
    return "\n\n".join(parts) + "\n"


def machine(result: dict[str, Any]) -> Table:
    """What a device and its host are."""
    device, host = result["device"], result["machine"]
    facts = {
        "device": f"{device['count']} x {device['kind']}",
        "device memory": _memory(device["memory_bytes"], result),
        "processor": f"{host['processor']} ({host['architecture']})",
        "cores, hardware threads, usable": ", ".join(known(host[name]) for name in ("cores", "cpus", "usable_cpus")),
        "caches": caches(host["caches"]),
        "instruction sets": ", ".join(host["instruction_sets"]) or UNKNOWN,
        "memory": _memory(host["memory_bytes"], result),
    }
    return Table("detected", ["", ""], [list(fact) for fact in facts.items()])


def caches(found: list[dict[str, Any]]) -> str:
    """Caches in a line: "L1 data 2 x 48 KiB, ..."."""
    parts = [f"L{c['level']} {c['kind']} {c['instances']} x {_kibibytes(c['bytes'])}" for c in found]
    return ", ".join(parts) or UNKNOWN


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
