"""The training step of the shipped configs: alone, in the loop with its data, against the ceiling, by operation."""

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from ttm_jax.measure.ceilings import PRODUCT, CeilingSizes, ceiling_functions, ceiling_sizes
from ttm_jax.measure.profile import arithmetic_share, product_share, profile
from ttm_jax.measure.progress import Progress
from ttm_jax.measure.report import Table, median, percent, quartiles, scaled, times
from ttm_jax.measure.timing import affordable_calls, spread, timed_call
from ttm_jax.measure.workload import (
    too_large,
    training_arguments,
    training_flops,
    training_program,
    training_step,
)
from ttm_jax.multiplication.config import Config
from ttm_jax.tasks import load_config, make_objective, make_task
from ttm_jax.training.config import find_config
from ttm_jax.training.mesh import Placement, place

CONFIGS = ("quick", "three_digits")  # a small machine, and the checklist's sizes
QUICK_CONFIGS = ("quick",)
FORMS = {"alone": "a step alone", "in_loop": "a step in the loop", "undivided": "a step alone on one device"}
WANTED = 0.6  # of the ceiling
COSTLIEST = 10
TRACED_CALLS = 3
PRODUCTS_A_TURN = 5
TURN_S = 1.0  # in which so many steps are taken as fit, at least two and at most ten


def measure(
    device: jax.Device,
    quick: bool,
    progress: Progress,
    configs: Mapping[str, Config] | None = None,
    ceiling: CeilingSizes | None = None,
    budget_s: float | None = None,
    traces: Path | None = None,
) -> dict[str, Any]:
    """Times the training step of each config, alone and in the loop, in turns, and profiles it.

    Each has `budget_s` seconds: 40, or 4 in a quick run. The traces are kept in `traces`, a folder a config.
    """
    if configs is None:
        configs = {name: load_config(find_config(name)) for name in (QUICK_CONFIGS if quick else CONFIGS)}
    ceiling = ceiling_sizes(device) if ceiling is None else ceiling
    budget_s = (4.0 if quick else 40.0) if budget_s is None else budget_s
    with jax.default_device(device), ExitStack() as stack:
        traces = traces or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        progress.plan(3 * len(configs))
        product = ceiling_functions(ceiling)[PRODUCT]
        rows = [
            _row(name, config, device, product, ceiling, progress, budget_s, traces / name)
            for name, config in configs.items()
        ]
    return {"wanted": WANTED, "rows": rows}


def _row(
    name: str,
    config: Config,
    device: jax.Device,
    product: Callable[[], Any],
    ceiling: CeilingSizes,
    progress: Progress,
    budget_s: float,
    trace: Path,
) -> dict[str, Any]:
    progress.step(f"compiling: {name}")
    B = config.data.batch_size
    placement = place(B)
    state, batch = training_arguments(config, B, placement)
    program = training_program(placement, state, batch)
    T = batch["targets"].shape[1]
    row: dict[str, Any] = {
        "config": name,
        "batch_size": B,
        "num_steps": T,
        "num_devices": len(placement.devices),
        "micro_batches": placement.micro_batches,
        "memory": program.memory_dict(),
    }
    if reason := too_large(program, device):
        progress.step(f"left out: {name}")
        progress.step(f"left out: {name}")
        return {**row, "skipped": reason}
    function = program.bind(state, batch)
    calls = affordable_calls(function, budget_s)
    step_s = timed_call(function)
    progress.step(f"timing: {name}")
    steps = max(2, min(10, int(TURN_S / step_s)))
    timings = _take_turns(config, placement, product, steps, turns=max(5, calls // (2 * steps)))
    flops = training_flops(config, B, T)
    ceiling_flops_per_s = 2 * ceiling.product**3 / timings["product"]["median_s"]
    progress.step(f"profiling: {name}")
    found = profile(function, program, trace, TRACED_CALLS)
    return {
        **row,
        **timings,
        "steps_a_turn": steps,
        "flops": flops,
        "ceiling_flops_per_s": ceiling_flops_per_s,
        "flops_fraction": flops / timings["alone"]["median_s"] / ceiling_flops_per_s,
        "profile": found,
    }


def _take_turns(
    config: Config, placement: Placement, product: Callable[[], Any], steps: int, turns: int
) -> dict[str, Any]:
    """Seconds of a step alone, of one in the loop, of making a batch, and of the ceiling's product."""
    config = replace(
        config,
        curriculum=replace(config.curriculum, start_stage=config.curriculum.last_stage),
        train=replace(config.train, eval_every_epochs=10**9, max_epochs=10**9),
    )

    def alone(placement: Placement) -> Callable[[], Any]:
        step = training_step(placement)
        state, batch = training_arguments(config, config.data.batch_size, placement)

        def take_steps() -> Any:
            nonlocal state
            metrics = {}
            for _ in range(steps):
                state, metrics = step(state, batch)
            return metrics

        return take_steps

    def products() -> None:
        for _ in range(PRODUCTS_A_TURN):
            jax.block_until_ready(product())

    # The first product after other work is slower than those that follow: it is not counted.
    others = {"alone": alone(placement), "first product": product, "products": products}
    if placement.step_mesh is not None:
        others["undivided"] = alone(place(config.data.batch_size, num_devices=1))
    in_loop, seconds = _time_turns(config, steps, turns, others)
    task = make_task(config)
    data = [timed_call(lambda n=n: placement.divide(task.batch(n).arrays)) for n in range(5 * turns)]
    steps_alone = {name: seconds[name] for name in FORMS if name in seconds}
    return {
        **{name: spread([turn / steps for turn in found]) for name, found in steps_alone.items()},
        "in_loop": spread([turn / steps for turn in in_loop]),
        "product": spread([turn / PRODUCTS_A_TURN for turn in seconds["products"]]),
        "data": spread(data[1:]),
    }


def _time_turns(
    config: Config, steps: int, turns: int, others: Mapping[str, Callable[[], Any]]
) -> tuple[list[float], dict[str, list[float]]]:
    """Time the loop and others in turns of so many steps: seconds of each turn, the first, which compiles, left out."""
    from ttm_jax.training.jax_engine import JaxEngine  # and orbax, which takes a second
    from ttm_jax.training.loop import Stepped, train

    class WatchedEngine(JaxEngine):
        newest: Any = None

        def step(self, state: Any, arrays: Any, plan: Any) -> Any:
            state, metrics = super().step(state, arrays, plan)
            self.newest = metrics["loss"]
            return state, metrics

    engine = WatchedEngine(make_objective(config), config.optimizer, config.train.seed, config.data.batch_size)
    in_loop: list[float] = []
    seconds: dict[str, list[float]] = {name: [] for name in others}
    with tempfile.TemporaryDirectory() as folder:
        stop = lambda: len(in_loop) == 1 + turns  # noqa: E731
        begun = time.perf_counter()
        for event in train(config, make_task(config), engine, Path(folder) / "run", stop=stop):
            if isinstance(event, Stepped) and event.step % steps == 0:
                jax.block_until_ready(engine.newest)  # the loop has only dispatched it
                in_loop.append(time.perf_counter() - begun)
                for name, function in others.items():
                    seconds[name].append(timed_call(function))
                begun = time.perf_counter()
    return in_loop[1:], {name: found[1:] for name, found in seconds.items()}


def tables(section: dict[str, Any]) -> list[Table]:
    """The steps, and the costliest operations of each config."""
    rows, sizes, costliest = [], [], []
    for row in section["rows"]:
        name = row["config"]
        devices = f" divided between {n} devices" if (n := row.get("num_devices", 1)) > 1 else ""
        sizes.append(f"{name}: batch {row['batch_size']}{devices}, {row['num_steps']} places")
        if "skipped" in row:
            rows.append([name, "not run", "-", "-"])
            continue
        forms = {form: label for form, label in FORMS.items() if form in row}
        reached = {form: row["flops"] / row[form]["median_s"] / row["ceiling_flops_per_s"] for form in forms}
        for form, label in {**forms, "data": "making the batch"}.items():
            share = percent(reached[form]) if form in FORMS else "-"
            rows.append([f"{name}: {label}", median(row[form]), quartiles(row[form]), share])
        ceiling = f"{name}: the ceiling, {scaled(row['ceiling_flops_per_s'], 'FLOP/s')}"
        rows.append([ceiling, median(row["product"]), quartiles(row["product"]), "-"])
        costliest.append(_costliest(row))
    title = f"training step ({'; '.join(sizes)})"
    return [Table(title, ["config", "median", "quartiles", "of ceiling"], rows), *costliest]


def _costliest(row: dict[str, Any]) -> Table:
    rows = [
        [
            f"{work['part']}: {work['kind']}{', ' if work['phase'] else ''}{work['phase']}",
            scaled(work["seconds"], "s"),
            percent(work["share"]),
            str(work["number"]),
        ]
        for work in row["profile"]["rows"][:COSTLIEST]
    ]
    devices = f" on {n} devices together" if (n := row.get("num_devices", 1)) > 1 else ""
    seconds = scaled(row["profile"]["seconds"], "s")
    title = f"{row['config']}: the ten costliest of all operations of a step, {seconds}{devices}"
    return Table(title, ["operation", "a step", "share", "instructions run"], rows)


def notes(section: dict[str, Any]) -> list[str]:
    """Whether the ceiling is reached as wanted, what the data cost, and where the rest goes."""
    found = []
    for row in section["rows"]:
        if "skipped" in row:
            found.append(f"{row['config']}: not run: it {row['skipped']}.")
            continue
        met = "met" if row["flops_fraction"] >= section["wanted"] else "not met"
        ratio = times(row["in_loop"]["median_s"] / row["alone"]["median_s"])
        arithmetic, products = map(percent, limits(row))
        found.append(
            f"{row['config']}: {percent(row['flops_fraction'])} of the FLOP/s of a large product "
            f"(wanted: {percent(section['wanted'])}, {met}); in the loop, with its data, a step takes {ratio} as long "
            f"as alone{_undivided(row)}. By kind: {_shares(row, 'kind')}. By pass: {_shares(row, 'phase')}. "
            f"Were nothing made again and nothing copied, it would be at {arithmetic}; were the "
            f"products of its forward and backward pass all that it does, at {products}."
        )
    return found


def _undivided(row: dict[str, Any]) -> str:
    if "undivided" not in row:
        return ""
    return f", and divided {times(row['alone']['median_s'] / row['undivided']['median_s'])} as long as on one device"


def limits(row: dict[str, Any]) -> tuple[float | None, float | None]:
    """Shares of the ceiling, by estimate: were nothing made again and nothing copied, and were the products all."""
    found = (share(row["profile"]) for share in (arithmetic_share, product_share))
    arithmetic, products = (row["flops_fraction"] / share if share else None for share in found)
    return arithmetic, products


def _shares(row: dict[str, Any], key: str) -> str:
    shares: dict[str, float] = {}
    for work in row["profile"]["rows"]:
        name = work[key] or "unnamed"
        shares[name] = shares.get(name, 0.0) + work["share"]
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {percent(share)}" for name, share in ordered)
