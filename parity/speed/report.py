"""Tables of measured cases; all follow from the JSON alone."""

from collections.abc import Callable, Sequence
from typing import Any

from parity.speed.cases import COMPILE, COMPILE_STEP, EAGER, JAX
from ttm_jax.measure.report import markdown_table, short_commit

LABELS = {JAX: "JAX", EAGER: "eager", COMPILE: "compile", COMPILE_STEP: "compile step"}
KINDS = {"train": "Training step", "forward": "Inference", "stream": "Streaming: one step of one example"}
# What docs/performance.md shows, in its words.
README_ROWS = {
    "quick/6/float32/train": "training step, `quick`, batch 64",
    "three_digits/7/float32/train": "training step, `three_digits`, batch 64",
    "three_digits/7/float32/forward": "inference, `three_digits`, batch 64",
    "three_digits/1/float32/stream": "one streaming step, `three_digits`",
    "paper-16/8/float32/train": "training step, paper's machine, 8 steps of 16 tokens",
    "paper-3136/8/float32/train": "training step, paper's machine, 8 steps of 3136 tokens",
}

Case = dict[str, Any]
Cell = dict[str, Any]


def best_torch(case: Case) -> str | None:
    """Name the PyTorch variant with the least median; None where none was timed."""
    timed = [name for name, cell in case["variants"].items() if name.startswith("torch") and "ms" in cell]
    return min(timed, key=lambda name: case["variants"][name]["ms"]["median"]) if timed else None


def one_line(case: Case) -> str:
    """Write a case as progress shows it: medians, and ratios to JAX."""
    if "refused" in case:
        return f"{case['name']}: REFUSED: {case['refused']}"
    words = []
    for name, cell in case["variants"].items():
        ratio = f" ({cell['ratio']['median']:.2f} x)" if "ratio" in cell and name != JAX else ""
        words.append(f"{LABELS[name]} {_median(cell)}{ratio}" if "ms" in cell else f"{LABELS[name]} {cell['failed']}")
    return f"{case['name']}: " + ", ".join(words)


def markdown(result: dict[str, Any]) -> str:
    """Write all tables as a page."""
    cases = [case for case in result["cases"] if "refused" not in case]
    notes: list[str] = []
    parts = [_heading(result)]
    for kind, title in KINDS.items():
        if chosen := [case for case in cases if case["kind"] == kind]:
            parts += [f"## {title}, ms", _table(chosen, _time, notes, slice(1, None))]
    if cases:
        parts += ["## First call: trace, compile and run once, s", _table(cases, _first_call, notes)]
    if chosen := [case for case in cases if case["kind"] == "train" and any(map(_peak, case["variants"].values()))]:
        parts += ["## Largest resident memory of the process, compiling included, MB", _table(chosen, _peak, notes)]
    if refused := [case for case in result["cases"] if "refused" in case]:
        parts += ["## Refused", "\n".join(f"- {case['name']}: {case['refused']}" for case in refused)]
    if notes:
        parts += ["## Why a number is missing", "\n".join(f"{i}. {note}" for i, note in enumerate(notes, 1))]
    return "\n\n".join(parts) + "\n"


def readme_table(result: dict[str, Any]) -> str:
    """Write the short table, and where it comes from."""
    by_name = {case["name"]: case for case in result["cases"]}
    rows = []
    for name, words in README_ROWS.items():
        case = by_name.get(name)
        best = best_torch(case) if case else None
        if case is None or best is None or "ms" not in case["variants"].get(JAX, {}):
            rows.append([words, "not measured", "", ""])
            continue
        cells = case["variants"]
        rows.append([words, _median(cells[JAX]), f"{_median(cells[best])} ({LABELS[best]})", _ratio(cells[best])])
    return f"{markdown_table(['float32', 'JAX', 'best PyTorch', 'PyTorch / JAX'], rows)}\n\n{_origin(result)}"


def _heading(result: dict[str, Any]) -> str:
    """Say where the result comes from: the device, and each run's command with the load that the machine had before."""
    runs = {case["run"]["date"]: case["run"] for case in result["cases"]}
    commands = ", ".join(f"`{run['command']}` (load before it {run['load_at_start']:.1f})" for run in runs.values())
    return f"""# JAX and PyTorch side by side

{_origin(result)} {result["threads"]} threads for each framework. Written by {commands}.

Medians of the rounds (quartiles in brackets). **PyTorch / JAX** is the time of the best PyTorch variant by that of JAX
in the same round: above 1, JAX is faster. `results/speed/README.md` says how it was measured."""


def _origin(result: dict[str, Any]) -> str:
    device = result["machine"] if result["backend"] == "cpu" else f"{result['device']} ({result['machine']})"
    date = max(case["run"]["date"] for case in result["cases"])[:10]
    commit = short_commit(result["commit"])
    return f"{device}; jax {result['jax']}, torch {result['torch']}; commit `{commit}`, {date}."


def _table(
    cases: Sequence[Case], figure: Callable[[Cell], str | None], notes: list[str], columns: slice = slice(-1)
) -> str:
    """Write a row a case, a column a variant: kind and sizes, a figure of each cell, the ratio of the best PyTorch."""
    shown = [name for name in LABELS if any(name in case["variants"] for case in cases)]
    rows = []
    for case in cases:
        best = best_torch(case)
        row = [_kind(case), case["size"], str(case["steps"]), case["dtype"], str(case["batch_size"])]
        for name in shown:
            cell = case["variants"].get(name)
            row.append("-" if cell is None else figure(cell) or _note(case, name, notes))
        rows.append([*row, _ratio(case["variants"][best]) if best else "-"])
    headings = ["what", "model", "steps", "type", "batch", *(LABELS[name] for name in shown), "PyTorch / JAX"]
    return markdown_table(headings[columns], [row[columns] for row in rows])


def _kind(case: Case) -> str:
    return KINDS[case["kind"]].split(":")[0]


def _what(case: Case) -> str:
    return f"{case['size']}, {case['steps']} step{'s' * (case['steps'] > 1)}, {case['dtype']}"


def _note(case: Case, name: str, notes: list[str]) -> str:
    """Return a reference to why a cell has no number."""
    note = f"{case['name']}, {LABELS[name]}: {case['variants'][name]['failed']}"
    if note not in notes:
        notes.append(note)
    return f"[{notes.index(note) + 1}]"


def _time(cell: Cell) -> str | None:
    if "ms" not in cell:
        return None
    middle, low, high = (_digits(cell["ms"][key]) for key in ("median", "quartile_1", "quartile_3"))
    return f"{middle} ({low} - {high})"


def _first_call(cell: Cell) -> str | None:
    return f"{cell['first_call_s']:.1f}" if "first_call_s" in cell else None


def _peak(cell: Cell) -> str | None:
    return f"{cell['peak_mb']:,.0f}" if cell.get("peak_mb") is not None else None


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _median(cell: Cell) -> str:
    return f"{_digits(cell['ms']['median'])} ms"


def _ratio(cell: Cell) -> str:
    if "ratio" not in cell:
        return "-"
    ratio = cell["ratio"]
    return f"**{ratio['median']:.2f}** ({ratio['quartile_1']:.2f} - {ratio['quartile_3']:.2f})"
