"""The training step of the shipped configs: alone, in the loop with its data, against the ceiling, by operation."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from ttm_jax.cli import Progress
from ttm_jax.measure.ceilings import PRODUCT, CeilingSizes, ceiling_functions, ceiling_sizes
from ttm_jax.measure.profile import (
    KINDS,
    PHASES,
    UNNAMED,
    arithmetic_share,
    product_share,
    profile,
)
from ttm_jax.measure.program import too_large
from ttm_jax.measure.report import Table, median, percent, quartiles, ratio, scaled, times
from ttm_jax.measure.timing import Function, affordable_calls, spread, timed_call
from ttm_jax.measure.workload import training_arguments, training_flops, training_program, training_step
from ttm_jax.multiplication.config import Config
from ttm_jax.tasks import load_config, make_objective, make_task
from ttm_jax.training.mesh import Placement, place

TITLE, FLAG = "Training step", "--training"
QUICK = {"configs": ("quick",), "budget_s": 4.0}
FORMS = {"alone": "a step alone", "in_loop": "a step in the loop", "undivided": "a step alone on one device"}
COMPARED = (("in_loop", "alone"), ("alone", "undivided"))
SHARES = (*KINDS, *PHASES, UNNAMED.part)
WANTED = 0.6  # of the ceiling
COSTLIEST = 10
TRACED_CALLS = 3
PRODUCTS_A_TURN = 5
TURN_S = 1.0  # in which so many steps are taken as fit, at least two and at most ten


def measure(
    device: jax.Device,
    progress: Progress,
    configs: Mapping[str, Config] | Sequence[str] = ("quick", "three_digits"),
    ceiling: CeilingSizes | None = None,
    budget_s: float = 40.0,
    traces: Path | None = None,
) -> dict[str, Any]:
    """Time the training step of each config, alone and in the loop, in turns, and profile it.

    Configs are given, or named. The traces are kept in `traces`, a folder a config.
    """
    if not isinstance(configs, Mapping):
        configs = {name: load_config(name) for name in configs}
    ceiling = ceiling or ceiling_sizes(device)
    with jax.default_device(device), tempfile.TemporaryDirectory() as folder:
        progress.plan(3 * len(configs))
        product = ceiling_functions(ceiling)[PRODUCT]
        rows = []
        for name, config in configs.items():
            row = _measure_row(name, config, device, product, progress, budget_s, (traces or Path(folder)) / name)
            if "skipped" not in row:
                row["ceiling_flops_per_s"] = 2 * ceiling.product**3 / row["product"]["median_s"]
                row["flops_fraction"] = row["flops"] / row["alone"]["median_s"] / row["ceiling_flops_per_s"]
            rows.append(row)
    return {"wanted": WANTED, "rows": rows}


def _measure_row(
    name: str, config: Config, device: jax.Device, product: Function, progress: Progress, budget_s: float, trace: Path
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
        "memory": program.memory,
    }
    progress.step(f"timing: {name}")
    if reason := too_large(program, device):
        progress.step(f"left out: {name}")
        return {**row, "skipped": reason}
    function = program.bind(state, batch)
    calls = affordable_calls(function, budget_s)
    steps = max(2, min(10, int(TURN_S / timed_call(function))))
    timings = _take_turns(config, placement, product, steps, turns=max(5, calls // (2 * steps)))
    progress.step(f"profiling: {name}")
    found = profile(function, program, trace, TRACED_CALLS)
    return {**row, **timings, "steps_a_turn": steps, "flops": training_flops(config, B, T), "profile": found}


def _take_turns(config: Config, placement: Placement, product: Function, steps: int, turns: int) -> dict[str, Any]:
    """Time a step alone, one in the loop, making a batch, and the ceiling's product, in seconds."""
    config = replace(
        config,
        curriculum=replace(config.curriculum, start_stage=config.curriculum.last_stage),
        train=replace(config.train, eval_every_epochs=10**9, max_epochs=10**9),
    )

    def alone(placement: Placement) -> Function:
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
    config: Config, steps: int, turns: int, others: Mapping[str, Function]
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
    """Make tables of the steps, what they reach, how their operations divide, and the costliest of each config."""
    steps, reached, shares, costliest = [], [], {}, []
    for row in section["rows"]:
        n = row.get("num_devices", 1)
        devices = f" divided between {n} devices" if n > 1 else ""
        steps.append([f"{row['config']}: batch {row['batch_size']}{devices}, {row['num_steps']} places", *"---"])
        if "skipped" in row:
            steps[-1][1] = median(row)
            continue
        forms = {form: label for form, label in FORMS.items() if form in row}
        for form, label in {**forms, "data": "making the batch", "product": "the ceiling"}.items():
            fraction = row["flops"] / row[form]["median_s"] / row["ceiling_flops_per_s"]
            share = scaled(row["ceiling_flops_per_s"], "FLOP/s") if form == "product" else percent(fraction)
            steps.append([label, median(row[form]), quartiles(row[form]), "-" if form == "data" else share])
        seconds = {form: row[form]["median_s"] for form in forms}
        compared = [times(ratio(seconds[a], seconds[b]) if b in seconds else None) for a, b in COMPARED]
        reached.append([row["config"], percent(row["flops_fraction"]), *map(percent, limits(row)), *compared])
        shares[row["config"]] = _shares(row)
        costliest.append(_costliest(row))
    divided = [[name, *(percent(found[name]) for found in shares.values())] for name in SHARES]
    limit = ["nothing made again or copied", "products alone", "in the loop / alone", "divided / on one device"]
    return [
        Table("training step", ["", "median", "quartiles", "of ceiling"], steps),
        Table(f"share of the ceiling (wanted: {percent(section['wanted'])})", ["", "a step alone", *limit], reached),
        Table("shares of the operations by kind and by pass", ["", *shares], divided),
        *costliest,
    ]


def _costliest(row: dict[str, Any]) -> Table:
    rows = []
    for work in row["profile"]["rows"][:COSTLIEST]:
        name = f"{work['part']}: {', '.join(filter(None, (work['kind'], work['phase'])))}"
        rows.append([name, scaled(work["seconds"], "s"), percent(work["share"]), str(work["number"])])
    devices = f" on {n} devices together" if (n := row.get("num_devices", 1)) > 1 else ""
    seconds = scaled(row["profile"]["seconds"], "s")
    title = f"{row['config']}: the ten costliest of all operations of a step, {seconds}{devices}"
    return Table(title, ["operation", "a step", "share", "instructions run"], rows)


def _shares(row: dict[str, Any]) -> dict[str, float]:
    shares = dict.fromkeys(SHARES, 0.0)
    for work in row["profile"]["rows"]:
        shares[work["kind"]] += work["share"]
        shares[work["phase"] or UNNAMED.part] += work["share"]
    return shares


def limits(row: dict[str, Any]) -> list[float | None]:
    """Estimate shares of the ceiling: were nothing made again and nothing copied, and were the products all."""
    shares = arithmetic_share(row["profile"]), product_share(row["profile"])
    return [ratio(row["flops_fraction"], share or None) for share in shares]
