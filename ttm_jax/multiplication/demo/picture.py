"""A trace as a picture in a file: PNG, or the page with this one product in it."""

from pathlib import Path
from typing import Any

import numpy as np

from ttm_jax.multiplication.demo.page import page_html
from ttm_jax.multiplication.demo.terminal import TRAINED, column_text
from ttm_jax.multiplication.demo.trace import Trace, symbol
from ttm_jax.multiplication.problems import MAX_CARRY, place_name
from ttm_jax.plotting import pyplot

SUFFIXES = (".png", ".html")
_READ, _NEW, _WRONG, _INK, _FAINT = "#005ab5", "#b84a00", "#b0125b", "#1b1f24", "#57606a"
_ROW, _CELL, _TITLE = 0.34, 0.42, 1.9  # inches; a panel is no narrower than its title
_EXPLANATION = (
    "A row is a step: it writes a digit, units first, {how}sees the whole problem and hands on its memory alone.\n"
    "Memory wiped: the digit with memory reset before each machine step. Frames: the true carry, and the digits of the "
    "column by hand."
)
_BY_PRODUCTS = "by a machine step for each product of its column,\neach of which "


class PictureError(OSError):
    """A picture that cannot be written; the message is one line."""


def save_picture(path: Path, trace: Trace) -> None:
    """Write the trace as a PNG or as a page, as the path's suffix says.

    Raises:
        PictureError: if the file cannot be written.
    """
    try:
        if path.suffix.lower() == ".html":
            path.write_text(page_html(trace.read_TxM.shape[1], trace.to_dict()), encoding="utf-8")
        else:
            _save_png(path, trace)
    except OSError as error:
        raise PictureError(f"{path}: {error.strerror}") from None


def _save_png(path: Path, trace: Trace) -> None:
    plt = pyplot()
    # Above, panels beside each other with a row for each step; below, the memory.
    rows = len(trace.steps)
    panels = [(_draw_sums, 5.6), (_draw_reads, max(_CELL * len(trace.operand_tokens), _TITLE))]
    if trace.origin_TxW is not None:
        panels.append((_draw_origins, max(_CELL * rows, _TITLE)))
    if trace.carry_probabilities_TxC is not None:
        panels.insert(1, (_draw_carries, min(0.26 * len(_shown_carries(trace)), 5.0)))
    widths = [width for _, width in panels]
    style = {"font.size": 10, "text.color": _INK, "axes.edgecolor": _FAINT, "xtick.color": _INK, "ytick.color": _INK}
    with plt.rc_context(style):
        upper_height, lower_height = 1.5 + _ROW * rows, 1.2 + 0.2 * rows
        figure = plt.figure(
            figsize=(sum(widths) + 0.7 * len(widths), upper_height + lower_height), layout="constrained"
        )
        halves: Any = figure.subfigures(2, 1, height_ratios=[upper_height, lower_height])
        upper, lower = halves
        for axis, (draw, _) in zip(upper.subplots(1, len(panels), width_ratios=widths), panels, strict=True):
            draw(axis, trace)
            axis.set_ylim(rows - 0.5, -0.5)
            axis.xaxis.tick_top()
        _draw_memory(lower, trace)
        upper.suptitle(_title(trace), fontsize=14, fontweight="bold", x=0.01, ha="left")
        explanation = _EXPLANATION.format(how=_BY_PRODUCTS if trace.schedule == "product" else "")
        lower.supxlabel(explanation, fontsize=10, x=0.01, ha="left")
        figure.savefig(path, dpi=110, facecolor="white")
        plt.close(figure)


def _title(trace: Trace) -> str:
    answer = "no number" if trace.answer is None else trace.answer
    verdict = "right" if trace.correct else f"wrong, it is {trace.product}"
    return f"{trace.a} × {trace.b} = {answer}   {verdict}   ({TRAINED[trace.trained]})"


def _draw_sums(axis: Any, trace: Trace) -> None:
    """Draw the columns as by hand, beside what the network wrote, and wrote with its memory wiped."""
    columns = {"step": 0.0, "column by hand": 0.56, "digit": 0.65, "sure": 0.82, "memory wiped": 0.92}
    axis.set_axis_off()
    axis.set_xlim(0, 1)
    for name, x in columns.items():
        alignment = "left" if not x else "right" if name in ("column by hand", "sure") else "center"
        label = name.replace(" ", "\n") if name == "memory wiped" else name
        axis.text(x, -0.65, label, ha=alignment, va="bottom", color=_FAINT)
    for step in trace.steps:
        axis.text(columns["step"], step, f"{step + 1} {place_name(step)}", va="center")
        axis.text(columns["column by hand"], step, column_text(trace, step), ha="right", va="center")
        axis.text(columns["sure"], step, f"{100 * trace.probabilities_T[step]:.1f} %", ha="right", va="center")
        for name, tokens_T in (("digit", trace.tokens_T), ("memory wiped", trace.wiped_T)):
            written, right = symbol(tokens_T[step]), symbol(tokens_T[step]) == symbol(trace.targets_T[step])
            text = written if right else f"{written} ✗"
            weight = "bold" if name == "digit" else "normal"
            axis.text(
                columns[name], step, text, ha="center", va="center", weight=weight, color=_INK if right else _WRONG
            )


def _shown_carries(trace: Trace) -> np.ndarray:
    """Return the carries from 0 to the largest that is true or likely."""
    held_T = [held[0] for held in map(trace.held_carry, trace.steps) if held]
    largest = max(0, *held_T, *trace.carries_T)
    return np.arange(min(max(largest + 2, 6), MAX_CARRY + 1))


def _draw_carries(axis: Any, trace: Trace) -> None:
    assert trace.carry_probabilities_TxC is not None
    carries = _shown_carries(trace)
    in_product = [step for step in trace.steps if trace.is_in_product(step)]
    shown_TxC = np.zeros((len(trace.steps), len(carries)))
    shown_TxC[in_product] = trace.carry_probabilities_TxC[in_product, : len(carries)]
    _heat(axis, shown_TxC, _NEW)
    for step in in_product:
        axis.add_patch(_frame(trace.carries_T[step], step))
    every = 1 if len(carries) <= 12 else 5
    axis.set_xticks(carries[::every])
    axis.set_title("carry it holds for the\nnext step (frame: true)", fontsize=10)


def _draw_reads(axis: Any, trace: Trace) -> None:
    _heat(axis, trace.read_operands_TxN, _READ)
    _number(axis, trace.read_operands_TxN)
    for step in trace.steps:
        for column in trace.column(step):
            axis.add_patch(_frame(column, step))
    axis.set_xticks(range(len(trace.operand_tokens)), trace.operand_tokens, fontsize=12, weight="bold")
    axis.set_title("% of its read from the\nproblem (frames: by hand)", fontsize=10)


def _draw_origins(axis: Any, trace: Trace) -> None:
    origin_TxW = trace.read_written_TxW
    assert origin_TxW is not None
    _heat(axis, origin_TxW, _READ)
    _number(axis, origin_TxW)
    axis.set_xticks(range(origin_TxW.shape[1]), ["start", *map(str, range(1, origin_TxW.shape[1]))])
    axis.set_title("% from memory, by the\nstep that had written it", fontsize=10)


def _draw_memory(figure: Any, trace: Trace) -> None:
    M = trace.read_TxM.shape[1]
    maps = [(trace.read_TxM, _READ, trace.read_TxM.max(), f"what each step read from the {M} memory tokens")]
    if trace.kept_TxM is not None:
        title = "share of each memory token that the step wrote anew; the rest it kept"
        maps.append((1 - trace.kept_TxM, _NEW, 1.0, title))
    for axis, (values_TxM, colour, most, title) in zip(np.atleast_1d(figure.subplots(1, len(maps))), maps, strict=True):
        image = _heat(axis, values_TxM, colour, most, power=1)
        every = -(-M // 16)
        axis.set_xticks(range(0, M, every), [str(m + 1) for m in range(0, M, every)])
        axis.set(xlabel="memory token", ylabel="step")
        axis.set_title(title, fontsize=10)
        bar = figure.colorbar(image, ax=axis, pad=0.01)
        bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.3g} %")


def _heat(axis: Any, values: np.ndarray, colour: str, most: float = 1.0, power: float = 0.5) -> Any:
    """Draw shares as colours; by default they grow with the square root, so that small ones show."""
    from matplotlib.colors import LinearSegmentedColormap, PowerNorm

    colours = LinearSegmentedColormap.from_list("share", ["white", colour])
    axis.set_yticks(range(len(values)), [str(step + 1) for step in range(len(values))])
    axis.tick_params(length=0)
    return axis.imshow(values, colours, PowerNorm(power, 0, max(most, 1e-9)), aspect="auto")


def _number(axis: Any, values: np.ndarray) -> None:
    """Write the percentages on a map of shares."""
    for (row, column), share in np.ndenumerate(values):
        if share >= 0.005:
            ink = "white" if share > 0.5 else _INK
            axis.text(column, row, f"{100 * share:.0f}", ha="center", va="center", color=ink, fontsize=9)


def _frame(x: float, y: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, edgecolor=_INK, linewidth=1.5)
