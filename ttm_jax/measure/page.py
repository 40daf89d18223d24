"""The table of the devices in `hardware_choice.md`, and a page of all figures for each device."""

import os
from pathlib import Path
from typing import Any

from ttm_jax.files import FileError
from ttm_jax.hardware.detect import UNKNOWN
from ttm_jax.measure.report import (
    NOT_MEASURED,
    Table,
    markdown_table,
    median,
    percent,
    put_block,
    scaled,
    short_commit,
    write_changed,
)
from ttm_jax.measure.results import SECTIONS, result_path


def regenerate(page: Path, folder: Path, results: list[dict[str, Any]]) -> list[Path]:
    """Write the table of `page` and a page for each device; return those that changed, or raise FileError."""
    try:
        relative = Path(os.path.relpath(folder, page.parent or "."))
        pages = {page: put_block(page.read_text(encoding="utf-8"), "devices", devices(results, relative))}
        pages |= {device_page(folder, result): render_device(result) for result in results}
        return write_changed(pages)
    except OSError as error:
        raise FileError(f"--page {page}: {error.strerror}") from None
    except ValueError as error:  # no marks, or no text
        raise FileError(f"--page {page}: {error}") from None


def device_page(folder: Path, result: dict[str, Any]) -> Path:
    """Return where all that was measured on a device is written for people."""
    return result_path(folder, result["name"]).with_suffix(".md")


def figure_path(folder: Path, name: str) -> Path:
    """Return where the figure of a device's history is."""
    path = result_path(folder, name)
    return path.with_name(f"{path.stem}-history.png")


def devices(results: list[dict[str, Any]], folder: Path) -> str:
    """Write what each device reaches, a row each, with a link to all that was measured on it."""
    rows = []
    for result in results:
        cells = 4 * [NOT_MEASURED]
        if training := result.get("training", {}).get("rows"):
            cells[0] = scaled(training[0].get("ceiling_flops_per_s"), "FLOP/s")
            cells[1] = ", ".join(percent(row.get("flops_fraction")) for row in training)
        batches = result.get("batch_sizes", {"rows": []})
        for row in batches["rows"]:
            if row["batch_size"] == batches["best"]:
                cells[2] = f"{row['batch_size']}: {row['examples_per_s']:,.0f} examples/s"
        if "history" in result:
            cells[3] = median(result["history"]["streaming"][0]["machine"])
        rows.append([f"[{result['name']}]({device_page(folder, result).as_posix()})", *cells])
    headings = ["", "a large product", "a training step, of that", "best batch", "a streaming step"]
    return markdown_table(headings, rows)


def render_device(result: dict[str, Any]) -> str:
    """Write the page of a device: what it is, and every figure."""
    file = result_path(Path(), result["name"]).name
    parts = [
        f"# {result['name']}",
        f"Written by `python -m ttm_jax.benchmark --page` from [{file}]({file}); "
        "[README.md](README.md) says how it was measured.",
        machine(result).to_markdown(),
    ]
    for key, module in SECTIONS.items():
        parts.append(f"## {module.TITLE}")
        if key not in result:
            command = f"python -m ttm_jax.benchmark {module.FLAG}".strip()
            parts.append(f"{NOT_MEASURED.capitalize()}; `{command}` does.")
            continue
        parts += [table.to_markdown() for table in module.tables(result[key])]
        if key == "history":
            figure = figure_path(Path(), result["name"])
            parts.append(f"![time and memory against the length of the history]({figure})")
        parts.append(_origin(result[key]))
    return "\n\n".join(parts) + "\n"


def machine(result: dict[str, Any]) -> Table:
    """Make the table of what a device and its host are."""
    device, host = result["device"], result["machine"]
    own = "the machine's" if device["platform"] == "cpu" else UNKNOWN
    found = [f"L{c['level']} {c['kind']} {c['instances']} x {_kibibytes(c['bytes'])}" for c in host["caches"]]
    counts = (host[name] for name in ("cores", "cpus", "usable_cpus"))
    facts = {
        "device": f"{device['count']} x {device['kind']}",
        "device memory": own if device["memory_bytes"] is None else scaled(device["memory_bytes"], "B"),
        "processor": f"{host['processor']} ({host['architecture']})",
        "cores, hardware threads, usable": ", ".join(UNKNOWN if count is None else str(count) for count in counts),
        "caches": ", ".join(found) or UNKNOWN,
        "instruction sets": ", ".join(host["instruction_sets"]) or UNKNOWN,
        "memory": UNKNOWN if host["memory_bytes"] is None else scaled(host["memory_bytes"], "B"),
    }
    return Table("detected", ["", ""], [list(fact) for fact in facts.items()])


def _kibibytes(count: int) -> str:
    return f"{count // 1024:,} KiB" if count < 2**20 else f"{count / 2**20:g} MiB"


def _origin(section: dict[str, Any]) -> str:
    where = section["provenance"]
    words = [
        f"`{where['command']}`, {where['machine']}, jax {where['jax']}, Python {where['python']}",
        f"commit `{short_commit(where['commit'])}`, {where['date'][:10]}.",
    ]
    return ", ".join(words) + (" A quick run: few calls." if section["quick"] else "")
