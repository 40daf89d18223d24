"""Training throughput of the multiplier against the batch size, and the best batch."""

from collections.abc import Sequence
from typing import Any

import jax

from ttm_jax.cli import Progress
from ttm_jax.measure.ceilings import PRODUCT, CeilingSizes, ceiling_functions, ceiling_sizes
from ttm_jax.measure.program import Turns
from ttm_jax.measure.report import Table, median, percent, planned_memory, quartiles
from ttm_jax.measure.timing import affordable_calls, timed_call
from ttm_jax.measure.workload import training_arguments, training_batch, training_flops, training_program
from ttm_jax.multiplication.config import Config
from ttm_jax.tasks import load_config
from ttm_jax.training.mesh import place

TITLE, FLAG = "Batch size", "--batch-sizes"
CONFIG = "three_digits"  # memory 96
BATCH_SIZES = tuple(2**n for n in range(13))
QUICK = {"batch_sizes": (8, 32), "budget_s": 2.0}
LONGEST_STEP_S = 5.0  # no larger batch is tried where a step would take longer
NEARLY_BEST = 0.95
ROUNDS = 5


def measure(
    device: jax.Device,
    progress: Progress,
    config: Config | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    ceiling: CeilingSizes | None = None,
    budget_s: float = 20.0,
) -> dict[str, Any]:
    """Time training steps of growing batches, in turns, until one would take over five seconds or not fit."""
    config = config or load_config(CONFIG)
    ceiling = ceiling or ceiling_sizes(device)
    turns, rows = Turns(device, budget_s), []
    with jax.default_device(device):
        progress.plan(len(batch_sizes) + 1 + ROUNDS)
        for size in batch_sizes:
            progress.step(f"compiling: batch {size}")
            placement = place(size)
            arguments = training_arguments(config, size, placement)
            turns.enter(str(size), training_program(placement, *arguments), *arguments)
            if (function := turns.functions.get(str(size))) is None:
                break
            rows.append({"batch_size": size, "num_devices": len(placement.devices)})
            if 2 * timed_call(function) > LONGEST_STEP_S:
                break
        progress.step("compiling: ceiling")
        turns.functions[PRODUCT] = product = ceiling_functions(ceiling)[PRODUCT]
        turns.calls[PRODUCT] = affordable_calls(product, budget_s, most=50)
        timed = turns.time(ROUNDS, lambda: progress.step("timing"))
    places = training_batch(config, 1)["targets"].shape[1]
    ceiling_flops_per_s = 2 * ceiling.product**3 / timed[PRODUCT]["median_s"]
    for row in rows:
        row |= timed[str(row["batch_size"])]
        row["examples_per_s"] = row["batch_size"] / row["median_s"]
        row["flops_per_s"] = training_flops(config, row["batch_size"], places) / row["median_s"]
        row["flops_fraction"] = row["flops_per_s"] / ceiling_flops_per_s
    return {
        "config": CONFIG,
        "memory_size": config.model.memory_size,
        "num_steps": places,
        "ceiling_flops_per_s": ceiling_flops_per_s,
        "best": best_batch(rows),
        "rows": rows,
    }


def best_batch(rows: list[dict[str, Any]]) -> int | None:
    """Find the smallest batch with a throughput within 5 % of the highest measured; None where no batch fitted."""
    highest = max((row["examples_per_s"] for row in rows), default=0.0)
    return min((row["batch_size"] for row in rows if row["examples_per_s"] >= NEARLY_BEST * highest), default=None)


def tables(section: dict[str, Any]) -> list[Table]:
    """Make the table of throughput and memory by batch size."""
    headings = ["batch", "step", "quartiles", "examples/s", "of ceiling", "memory"]
    rows = [
        [
            f"{row['batch_size']:,}" + (" *" if row["batch_size"] == section["best"] else ""),
            median(row),
            quartiles(row),
            f"{row['examples_per_s']:,.0f}",
            percent(row["flops_fraction"]),
            planned_memory(row),
        ]
        for row in section["rows"]
    ]
    title = f"training the multiplier at M={section['memory_size']}, {section['num_steps']} places"
    if divided := [row["batch_size"] for row in section["rows"] if row.get("num_devices", 1) > 1]:
        title += f", divided between devices from batch {divided[0]} on"
    return [Table(f"{title}; * the best: the smallest within 5 % of the most examples/s", headings, rows)]
