"""Tables and chart of measured cases; all follow from the JSON alone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from parity.speed.cases import AUTOTUNE, COMPILE, COMPILE_STEP, EAGER, JAX, OTHER_FORMS, PLAIN, UNROLLED, UNROLLED_REMAT
from ttm_jax.measure.report import markdown_table

LABELS = {
    JAX: "JAX",
    EAGER: "eager",
    COMPILE: "compile",
    COMPILE_STEP: "compile step",
    AUTOTUNE: "compile, max-autotune",
    PLAIN: "JAX, no remat",
    UNROLLED: "JAX unrolled, no remat",
    UNROLLED_REMAT: "JAX unrolled, remat",
}
KINDS = {"train": "Training step", "forward": "Inference", "stream": "Streaming: one step of one example"}
MARKERS = "<!-- speed -->", "<!-- /speed -->"
# What docs/performance.md shows, in its words.
README_ROWS = {
    "quick/6/float32/train": "training step, `quick`, batch 64",
    "three_digits/7/float32/train": "training step, `three_digits`, batch 64",
    "three_digits/7/float32/forward": "inference, `three_digits`, batch 64",
    "three_digits/1/float32/stream": "one streaming step, `three_digits`",
    "paper-16/8/float32/train": "training step, paper's machine, 8 steps of 16 tokens",
    "paper-3136/8/float32/train": "training step, paper's machine, 8 steps of 3136 tokens",
}

_KEYS = ["model", "steps", "type", "batch"]
_TICKS = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 100]

Case = dict[str, Any]
Cell = dict[str, Any]


def best_torch(case: Case) -> str | None:
    """The PyTorch variant with the least median; None where none was timed."""
    timed = [name for name, cell in case["variants"].items() if name.startswith("torch") and "ms" in cell]
    return min(timed, key=lambda name: case["variants"][name]["ms"]["median"]) if timed else None


def one_line(case: Case) -> str:
    """A case as progress shows it: medians, and ratios to JAX."""
    if "refused" in case:
        return f"{case['name']}: REFUSED: {case['refused']}"
    words = []
    for name, cell in case["variants"].items():
        ratio = f" ({cell['ratio']['median']:.2f} x)" if "ratio" in cell and name != JAX else ""
        words.append(f"{LABELS[name]} {_median(cell)}{ratio}" if "ms" in cell else f"{LABELS[name]} {cell['failed']}")
    return f"{case['name']}: " + ", ".join(words)


def markdown(result: dict[str, Any]) -> str:
    """All tables as a page."""
    cases = [case for case in result["cases"] if "refused" not in case]
    notes: list[str] = []
    parts = [_heading(result)]
    for kind, title in KINDS.items():
        chosen = [case for case in cases if case["kind"] == kind]
        if chosen:
            parts += [f"## {title}, ms", _times_table(chosen, notes)]
    if cases:
        parts += ["## First call: trace, compile and run once, s", _cells_table(cases, _first_call, notes)]
    if chosen := [case for case in cases if case["kind"] == "train" and any(map(_peak, case["variants"].values()))]:
        parts += [
            "## Largest resident memory of the process, compiling included, MB",
            _cells_table(chosen, _peak, notes),
        ]
    if unrolled := [case for case in cases if UNROLLED in case["variants"]]:
        parts += ["## The steps under one scan, and unrolled in Python", *map(_forms_table, unrolled)]
    if refused := [case for case in result["cases"] if "refused" in case]:
        parts += ["## Refused", "\n".join(f"- {case['name']}: {case['refused']}" for case in refused)]
    parts += ["## Where JAX is not the faster", _losses(cases) if cases else "Nothing is measured yet."]
    if notes:
        parts += ["## Why a number is missing", "\n".join(f"{i}. {note}" for i, note in enumerate(notes, 1))]
    return "\n\n".join(parts) + "\n"


def readme_table(result: dict[str, Any]) -> str:
    """The short table, with where it comes from."""
    by_name = {case["name"]: case for case in result["cases"]}
    rows = []
    for name, words in README_ROWS.items():
        case = by_name.get(name)
        best = best_torch(case) if case else None
        if case is None or best is None or "ms" not in case["variants"].get(JAX, {}):
            rows.append([words, "not measured", "", ""])
            continue
        cells = case["variants"]
        torch = f"{_median(cells[best])} ({LABELS[best]})"
        rows.append([words, _median(cells[JAX]), torch, _ratio(cells[best])])
    table = markdown_table(["float32", "JAX", "best PyTorch", "PyTorch / JAX"], rows)
    unrolled = [_scan_against_unrolled(case) for case in result["cases"] if UNROLLED in case["variants"]]
    return "\n\n".join([table, *filter(None, unrolled), _origin(result)])


def _scan_against_unrolled(case: Case) -> str | None:
    """One sentence: the scan beside the faster of the unrolled forms; None where the scan was not timed."""
    scan, *unrolled = (case["variants"].get(name, {}) for name in (JAX, UNROLLED, UNROLLED_REMAT))
    if "ms" not in scan:
        return None
    beginning = (
        f"{case['steps']} steps of {case['size']} as one scan: {_first_call(scan)} s to the end of the first call, "
        f"{_median(scan)} a training step; unrolled in Python"
    )
    if timed := [cell for cell in unrolled if "ms" in cell]:
        fastest = min(timed, key=lambda cell: cell["ms"]["median"])
        return f"{beginning}, the faster of both ways: {_first_call(fastest)} s and {_median(fastest)}."
    return f"{beginning}: {'; '.join(dict.fromkeys(cell['failed'] for cell in unrolled if cell)) or 'not measured'}."


def put_in_readme(text: str, result: dict[str, Any]) -> str:
    """The text with the short table between its markers.

    Raises:
        ValueError: if it has no markers.
    """
    start, end = MARKERS
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not found_start or not found_end:
        raise ValueError(f"has no {start} ... {end} to put the table between")
    return f"{before}{start}\n{readme_table(result)}\n{end}{after}"


def draw(result: dict[str, Any], path: Path) -> None:
    """The ratios of the medians, with quartiles, as a chart."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    cases = [case for case in result["cases"] if "ms" in case["variants"].get(JAX, {})]
    panels = {kind: chosen for kind in KINDS if (chosen := [case for case in cases if case["kind"] == kind])}
    if not panels:
        return
    first, *others = panels
    rows: Any = [[first, kind] for kind in others] or [[first]]
    heights = [len(panels[row[-1]]) + 1 for row in rows]
    height = 1.5 + 0.55 * max(sum(heights), len(panels[first]))
    figure, axes = plt.subplot_mosaic(
        rows, height_ratios=heights, figsize=(8 * len(rows[0]), height), layout="constrained"
    )
    shown = [name for name in LABELS if name != JAX and any(_has_ratio(case, name) for case in cases)]
    for kind, chosen in panels.items():
        _draw_panel(axes[kind], KINDS[kind], chosen, shown)
    handles, labels = axes[first].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(shown), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_panel(axis: Any, title: str, cases: Sequence[Case], shown: Sequence[str]) -> None:
    height = 0.8 / max(len(shown), 1)
    for i, name in enumerate(shown):
        points = [(at, case["variants"][name]["ratio"]) for at, case in enumerate(cases) if _has_ratio(case, name)]
        places = [at + (i - (len(shown) - 1) / 2) * height for at, _ in points]
        medians = [ratio["median"] for _, ratio in points]
        below = [ratio["median"] - ratio["quartile_1"] for _, ratio in points]
        above = [ratio["quartile_3"] - ratio["median"] for _, ratio in points]
        axis.barh(
            places, [median - 1 for median in medians], height, left=1, xerr=[below, above], capsize=2,
            label=_torch_label(name), color=f"C{list(LABELS).index(name)}",
        )  # fmt: skip
    axis.set_title(title, loc="left", fontsize="medium")
    axis.axvline(1, color="black", linewidth=1)
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    low, high = min(low, 0.8), max(high, 1.25)
    axis.set_xlim(low, high)
    axis.set_xticks([tick for tick in _TICKS if low <= tick <= high])
    axis.xaxis.set_major_formatter("{x:g}")
    axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
    axis.set_xlabel("time / time of JAX (right of 1: JAX is faster); median and quartiles of the rounds")
    axis.set_yticks(range(len(cases)), [f"{_what(case)}\nJAX {_median(case['variants'][JAX])}" for case in cases])
    axis.tick_params(axis="y", labelsize="small")
    axis.set_ylim(len(cases) - 0.4, -0.6)
    axis.grid(axis="x", alpha=0.3)


def _has_ratio(case: Case, name: str) -> bool:
    return "ratio" in case["variants"].get(name, {})


def _torch_label(name: str) -> str:
    return LABELS[name] if name.startswith("jax") else f"PyTorch, {LABELS[name]}"


def _heading(result: dict[str, Any]) -> str:
    idle = [cell["idle_cpu"] for case in result["cases"] for cell in case["variants"].values() if "idle_cpu" in cell]
    return f"""# JAX and PyTorch side by side

{_origin(result)} {result["threads"]} threads for each framework. Written by {_runs(result)}.

Same weights, same batch, each variant in its own process; they take turns (A B C A B C ...), one at a time, and their
results must agree before they are timed. Medians of the rounds (quartiles in brackets). **PyTorch / JAX** is the time
of the best PyTorch variant by that of JAX in the same round: above 1, JAX is faster.

- JAX: one jitted function with the steps under `lax.scan`; a training step recomputes part of each machine step in its
  backward pass (`remat`). On a processor the batch of a config's training step is divided between the cores, as
  `ttm_jax.train` does it from commit `4b15cde` on; PyTorch computes each operation on all of them, as the twin does.
- eager: PyTorch as it is. compile: `torch.compile` of the whole forward pass (and so of its backward pass), whose graph
  grows with the steps. compile step: `torch.compile` of one machine step, called in a Python loop. Loss, clipping of
  gradients and optimisers run eagerly in PyTorch (Adam of a machine alone: fused), where JAX compiles the whole step;
  the multiplier's Muon steps equal kernels together in JAX and one by one in PyTorch. Inference is under
  `torch.inference_mode()`. Nothing is recomputed.
- Every process keeps the memory that it frees (`ttm_jax.hardware.allocator`), as training does.
- bfloat16: computation alone, by JAX's `dtype` and PyTorch's autocast; parameters are float32. On CUDA float32 products
  are TF32 in both.
- Processes that wait use {_percent(max(idle, default=None))} of a core at most (median of a case).

![times by those of JAX]({result["backend"]}.png)"""


def _runs(result: dict[str, Any]) -> str:
    """Each run's command, with the load that the machine had before it."""
    runs = {case["run"]["date"]: case["run"] for case in result["cases"]}
    return ", ".join(f"`{run['command']}` (load before it {run['load_at_start']:.1f})" for run in runs.values())


def _origin(result: dict[str, Any]) -> str:
    commit = (result["commit"] or "unknown")[:7] + ("+changes" if (result["commit"] or "").endswith("+changes") else "")
    device = result["machine"] if result["backend"] == "cpu" else f"{result['device']} ({result['machine']})"
    date = max(case["run"]["date"] for case in result["cases"])[:10]
    return f"{device}; jax {result['jax']}, torch {result['torch']}; commit `{commit}`, {date}."


def _times_table(cases: Sequence[Case], notes: list[str]) -> str:
    shown = [name for name in LABELS if any(name in case["variants"] for case in cases) and name not in OTHER_FORMS]
    rows = []
    for case in cases:
        cells = case["variants"]
        best = best_torch(case)
        times = [_time(case, name, notes) for name in shown]
        rows.append([*_keys(case), *times, _ratio(cells[best]) if best else "-"])
    return markdown_table([*_KEYS, *(LABELS[name] for name in shown), "PyTorch / JAX"], rows)


def _cells_table(cases: Sequence[Case], figure: Callable[[Cell], str | None], notes: list[str]) -> str:
    shown = [name for name in LABELS if any(name in case["variants"] for case in cases) and name not in OTHER_FORMS]
    rows = []
    for case in cases:
        figures = []
        for name in shown:
            cell = case["variants"].get(name)
            figures.append("-" if cell is None else figure(cell) or _note(case, name, notes))
        rows.append([_kind(case), *_keys(case), *figures])
    return markdown_table(["what", *_KEYS, *(LABELS[name] for name in shown)], rows)


def _forms_table(case: Case) -> str:
    """The forms of the same steps in JAX, each with and without recomputing in the backward pass."""
    rows = []
    for name in (JAX, *OTHER_FORMS):
        if cell := case["variants"].get(name):
            label = "JAX, scan, remat" if name == JAX else "JAX, scan, no remat" if name == PLAIN else LABELS[name]
            first, peak = _first_call(cell) or cell["failed"], _peak(cell) or "-"
            time = _spread(cell["ms"]) if "ms" in cell else "-"
            rows.append([label, first, time, _ratio(cell) if name != JAX else "1", peak])
    headings = ["", "first call, s", "training step, ms", "time / scan with remat", "largest memory, MB"]
    return f"{_what(case)}, batch {case['batch_size']}.\n\n{markdown_table(headings, rows)}"


def _losses(cases: Sequence[Case]) -> str:
    lost = []
    for case in cases:
        best = best_torch(case)
        ratio = case["variants"][best].get("ratio") if best else None
        if best and ratio and ratio["median"] <= 1:
            against = f"{_ratio(case['variants'][best])} against {LABELS[best]}"
            lost.append(f"- {_kind(case)}, {_what(case)}: {against}")
    return "\n".join(lost) or "Nowhere, of what was measured in both."


def _keys(case: Case) -> list[str]:
    return [case["size"], str(case["steps"]), case["dtype"], str(case["batch_size"])]


def _kind(case: Case) -> str:
    return KINDS[case["kind"]].split(":")[0]


def _what(case: Case) -> str:
    return f"{case['size']}, {case['steps']} step{'s' * (case['steps'] > 1)}, {case['dtype']}"


def _time(case: Case, name: str, notes: list[str]) -> str:
    cell = case["variants"].get(name)
    if cell is None:
        return "-"
    return _spread(cell["ms"]) if "ms" in cell else _note(case, name, notes)


def _note(case: Case, name: str, notes: list[str]) -> str:
    """A reference to why a cell has no number."""
    note = f"{case['name']}, {LABELS[name]}: {case['variants'][name]['failed']}"
    if note not in notes:
        notes.append(note)
    return f"[{notes.index(note) + 1}]"


def _first_call(cell: Cell) -> str | None:
    return f"{cell['first_call_s']:.1f}" if "first_call_s" in cell else None


def _peak(cell: Cell) -> str | None:
    return f"{cell['peak_mb']:,.0f}" if cell.get("peak_mb") is not None else None


def _digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}" if number >= 10 else f"{number:.2f}"


def _spread(ms: dict[str, float]) -> str:
    return f"{_digits(ms['median'])} ({_digits(ms['quartile_1'])} - {_digits(ms['quartile_3'])})"


def _median(cell: Cell) -> str:
    return f"{_digits(cell['ms']['median'])} ms"


def _ratio(cell: Cell) -> str:
    if "ratio" not in cell:
        return "-"
    ratio = cell["ratio"]
    return f"**{ratio['median']:.2f}** ({ratio['quartile_1']:.2f} - {ratio['quartile_3']:.2f})"


def _percent(share: float | None) -> str:
    return "(not measured)" if share is None else f"{100 * share:.1f} %"
