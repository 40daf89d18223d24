"""Training throughput of the multiplier against the batch size: the best batch, and the largest that fits."""

from typing import Any

import jax

from ttm_jax.hardware.detect import total_memory
from ttm_jax.measure.ceilings import PRODUCT, CeilingSizes, ceiling_functions, ceiling_sizes
from ttm_jax.measure.cost import device_memory_taken
from ttm_jax.measure.program import Program
from ttm_jax.measure.progress import Progress
from ttm_jax.measure.report import NOT_MEASURED, Table, median, peak, percent, quartiles, scaled
from ttm_jax.measure.timing import affordable_calls, spread, time_interleaved, timed_call
from ttm_jax.measure.workload import too_large, training_arguments, training_batch, training_flops, training_program
from ttm_jax.multiplication.config import Config
from ttm_jax.tasks import load_config
from ttm_jax.training.config import find_config
from ttm_jax.training.mesh import Placement, place

CONFIG = "three_digits"  # memory 96
BATCH_SIZES = tuple(2**n for n in range(13))
QUICK_BATCH_SIZES = (8, 32)
LONGEST_STEP_S = 5.0  # no larger batch is tried where a step would take longer
NEARLY_BEST = 0.95


def measure(
    device: jax.Device,
    quick: bool,
    progress: Progress,
    config: Config | None = None,
    batch_sizes: tuple[int, ...] | None = None,
    ceiling: CeilingSizes | None = None,
    budget_s: float | None = None,
) -> dict[str, Any]:
    """Times training steps of growing batches, taking turns, until one would take over five seconds or not fit.

    Each has `budget_s` seconds of calls: 20, or 2 in a quick run.
    """
    config = load_config(find_config(CONFIG)) if config is None else config
    batch_sizes = (QUICK_BATCH_SIZES if quick else BATCH_SIZES) if batch_sizes is None else batch_sizes
    ceiling = ceiling_sizes(device) if ceiling is None else ceiling
    budget_s = (2.0 if quick else 20.0) if budget_s is None else budget_s
    programs, functions, calls, device_bytes, devices = {}, {}, {}, {}, {}
    with jax.default_device(device):
        progress.plan(len(batch_sizes) + 1)
        for batch_size in batch_sizes:
            progress.step(f"compiling: batch {batch_size}")
            placement = place(batch_size)
            devices[str(batch_size)] = len(placement.devices)
            arguments = training_arguments(config, batch_size, placement)
            program = training_program(placement, *arguments)
            if too_large(program, device):
                break
            name, function = str(batch_size), program.bind(*arguments)

            def run(program: Program = program, batch_size: int = batch_size, placement: Placement = placement) -> None:
                jax.block_until_ready(program.bind(*training_arguments(config, batch_size, placement))())

            if not programs and not device.memory_stats():
                run()  # a resident set counts what is set up once; an allocator does not, and would keep this peak
            device_bytes[name] = device_memory_taken(run)
            programs[name], functions[name] = program, function
            calls[name] = affordable_calls(function, budget_s)
            if 2 * timed_call(function) > LONGEST_STEP_S:
                break
        progress.step("compiling: ceiling")
        functions[PRODUCT] = ceiling_functions(ceiling)[PRODUCT]
        calls[PRODUCT] = affordable_calls(functions[PRODUCT], budget_s, most=50)
        rounds = 5
        progress.plan(rounds)
        seconds = time_interleaved(
            functions, calls, rounds, lambda done, rounds: progress.step(f"timing, round {done + 1} of {rounds}")
        )
    timings = {name: spread(times) for name, times in seconds.items()}
    T = training_batch(config, 1)["targets"].shape[1]
    ceiling_flops_per_s = 2 * ceiling.product**3 / timings[PRODUCT]["median_s"]
    rows = []
    for name, program in programs.items():
        batch_size, step_s = int(name), timings[name]["median_s"]
        flops_per_s = training_flops(config, batch_size, T) / step_s
        rows.append(
            {
                "batch_size": batch_size,
                "num_devices": devices[name],
                **timings[name],
                "examples_per_s": batch_size / step_s,
                "flops_per_s": flops_per_s,
                "flops_fraction": flops_per_s / ceiling_flops_per_s,
                "memory": program.memory_dict(),
                "device_bytes": device_bytes[name],
            }
        )
    memory_bytes = total_memory(device)
    return {
        "config": CONFIG,
        "memory_size": config.model.memory_size,
        "num_steps": T,
        "ceiling_flops_per_s": ceiling_flops_per_s,
        "memory_bytes": memory_bytes,
        "best": best_batch(rows),
        "largest": largest_batch(rows, memory_bytes),
        "rows": rows,
    }


def best_batch(rows: list[dict[str, Any]]) -> int | None:
    """The smallest batch whose throughput is within 5 % of the highest measured; None where no batch fitted."""
    if not rows:
        return None
    highest = max(row["examples_per_s"] for row in rows)
    return min(row["batch_size"] for row in rows if row["examples_per_s"] >= NEARLY_BEST * highest)


def largest_batch(rows: list[dict[str, Any]], memory_bytes: int | None) -> int | None:
    """The largest power of two whose training step fits the memory, by the line through the two largest measured.

    None where a program's or the device's memory is not known, only one batch was measured, none fits, or batches are
    divided: then a step takes the memory of the parts that are computed at a time, whatever the batch.
    """
    if any(row.get("num_devices", 1) > 1 for row in rows):
        return None
    known = [(row["batch_size"], row["memory"]["peak"]) for row in rows if row["memory"] is not None]
    if len(known) < 2 or memory_bytes is None:
        return None
    (smaller, low), (larger, high) = sorted(known)[-2:]
    slope = (high - low) / (larger - smaller)
    batch_size, largest = 1, None
    while high + slope * (batch_size - larger) <= memory_bytes:
        batch_size, largest = 2 * batch_size, batch_size
    return largest


def tables(section: dict[str, Any]) -> list[Table]:
    """Throughput and memory by batch size."""
    headings = ["batch", "step", "quartiles", "examples/s", "of ceiling", "memory, planned", "memory, measured"]
    rows = [
        [
            f"{row['batch_size']:,}",
            median(row),
            quartiles(row),
            f"{row['examples_per_s']:,.0f}",
            percent(row["flops_fraction"]),
            peak(row["memory"]),
            scaled(row["device_bytes"], "B"),
        ]
        for row in section["rows"]
    ]
    title = f"training the multiplier at M={section['memory_size']}, {section['num_steps']} places"
    return [Table(title, headings, rows)]


def notes(section: dict[str, Any]) -> list[str]:
    """The best batch, and the largest that fits."""
    if section["best"] is None:
        return ["No batch fits: not one was run."]
    best = next(row for row in section["rows"] if row["batch_size"] == section["best"])
    found = [
        f"Best batch: {section['best']}, the smallest within 5 % of the highest throughput: "
        f"{best['examples_per_s']:,.0f} examples/s, a step of {median(best)}, {peak(best['memory'])}."
    ]
    if divided := [row for row in section["rows"] if row.get("num_devices", 1) > 1]:
        most = max(row["num_devices"] for row in divided)
        found.append(
            f"Batches from {divided[0]['batch_size']} on are divided, between {most} devices at most, which take their "
            "shares in parts of a few examples: memory hardly grows with such a batch."
        )
        return found
    if section["largest"] is None:
        return [*found, f"The largest batch that fits: {NOT_MEASURED}."]
    memory = scaled(section["memory_bytes"], "B")
    return [
        *found,
        f"The largest batch (a power of two) that fits {memory}: {section['largest']:,}, "
        "computed from the memory planned for the two largest batches measured, not run.",
    ]
