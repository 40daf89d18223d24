"""The figure of a step's cost against the length of the history."""

from pathlib import Path
from typing import Any

from ttm_jax.measure.history import MACHINE, TRANSFORMER

MODELS = ((MACHINE, "Token Turing Machine", "o-"), (TRANSFORMER, "causal Transformer", "s--"))


def draw_history(section: dict[str, Any], path: Path) -> None:
    """Time and memory, streaming and of whole sequences, both models, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5), sharex=True, layout="constrained")
    forms = (("streaming", "a streaming step after"), ("whole", "a whole sequence of"))
    for (time, memory), (form, what) in zip(axes, forms, strict=True):
        for name, label, style in MODELS:
            measured = [(r["steps"], r[name]) for r in section[form] if "skipped" not in r[name]]
            if not measured:
                continue
            steps = [steps for steps, _ in measured]
            middle, low, high = (
                [1e3 * cost[key] for _, cost in measured] for key in ("median_s", "quartile_1_s", "quartile_3_s")
            )
            (line,) = time.loglog(steps, middle, style, label=label, markersize=4)
            time.fill_between(steps, low, high, alpha=0.25, color=line.get_color(), linewidth=0)
            known = [(s, cost["memory"]["peak"] / 1e6) for s, cost in measured if cost["memory"] is not None]
            if known:
                memory.loglog(*zip(*known, strict=True), style, label=label, markersize=4)
        time.set(title=f"time of {what} n steps", ylabel="ms")
        memory.set(title=f"planned peak memory of {what} n steps", ylabel="MB")
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend(fontsize="small")
    for axis in axes[1]:
        axis.set(xlabel="n, steps")
    figure.savefig(path, dpi=110, facecolor="white")
    plt.close(figure)


def history_figure(result_path: Path) -> Path:
    """Where the figure of a result file is."""
    return result_path.with_name(f"{result_path.stem}-history.png")
