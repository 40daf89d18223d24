"""From measured times to statistics, a table and a chart: all follow from the JSON alone."""

import statistics
from collections.abc import Sequence
from typing import Any

from parity.speed_cases import AUTOTUNE, COMPILE, COMPILE_STEP, EAGER, JAX, UNROLLED

LABELS = {
    JAX: "JAX",
    UNROLLED: "JAX, unrolled",
    EAGER: "PyTorch, eager",
    COMPILE: "torch.compile",
    COMPILE_STEP: "torch.compile, one step",
    AUTOTUNE: "torch.compile, max-autotune",
}


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else 3 * [*values]
    return {"median": median, "quartile_1": low, "quartile_3": high}


def summarize(rounds_s: dict[str, list[list[float]]], reference: str = JAX) -> dict[str, dict[str, Any]]:
    """Statistics of times [round][call], in seconds, of each variant.

    "ms" is over the medians of the rounds, and so is "ratio": each round's median by that of the reference in the
    same round, so that a slow spell of the machine falls on both.
    """
    medians = {name: [statistics.median(calls) for calls in rounds] for name, rounds in rounds_s.items()}
    result = {}
    for name, values in medians.items():
        result[name] = {"ms": quartiles([1e3 * value for value in values])}
        if reference in medians:
            ratios = [value / base for value, base in zip(values, medians[reference], strict=True)]
            result[name]["ratio"] = quartiles(ratios)
    return result


def best_torch(case: dict[str, Any]) -> str | None:
    """The PyTorch variant with the least median; None where none was timed."""
    timed = {
        name: cell["ms"]["median"]
        for name, cell in case["variants"].items()
        if name.startswith("torch") and "ms" in cell
    }
    return min(timed, key=timed.__getitem__) if timed else None
