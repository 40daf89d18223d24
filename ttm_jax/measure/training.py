"""The training step of the shipped configs: alone, in the loop with its data, against the ceiling, by operation."""

import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from ttm_jax.cli import Progress
from ttm_jax.measure.ceilings import PRODUCT, CeilingSizes, ceiling_functions, ceiling_sizes
from ttm_jax.measure.profile import KINDS, PHASES, UNNAMED, arithmetic_share, product_share, profile
from ttm_jax.measure.program import too_large
from ttm_jax.measure.report import Table, median, percent, quartiles, ratio, scaled, times
from ttm_jax.measure.timing import Function, affordable_calls, spread, time_interleaved, timed_call
from ttm_jax.measure.workload import training_arguments, training_flops, training_program
from ttm_jax.multiplication.config import Config
from ttm_jax.tasks import load_config, make_objective, make_task
from ttm_jax.training.mesh import place

TITLE, FLAG = "Training step", "--training"
QUICK = {"configs": ("quick",), "budget_s": 4.0}
FORMS = {"alone": "a step alone", "in_loop": "a step in the loop", "undivided": "a step alone on one device"}
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
        product, rows = ceiling_functions(ceiling)[PRODUCT], []
        for name, config in configs.items():
            row = _row(name, config, device, product, progress, budget_s, (traces or Path(folder)) / name)
            if "skipped" not in row:
                row["ceiling_flops_per_s"] = 2 * ceiling.product**3 / row["product"]["median_s"]
                row["flops_fraction"] = row["flops"] / row["alone"]["median_s"] / row["ceiling_flops_per_s"]
            rows.append(row)
    return {"wanted": WANTED, "rows": rows}


def _row(
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
    step = program.bind(state, batch)
    calls = affordable_calls(step, budget_s)
    steps = max(2, min(10, int(TURN_S / timed_call(step))))
    turns = max(5, calls // (2 * steps))
    # The first product after other work is slower than those that follow: it is not counted.
    functions = {
        "alone": _repeated(step, steps),
        "first product": product,
        "product": _repeated(lambda: jax.block_until_ready(product()), PRODUCTS_A_TURN),
    }
    if placement.step_mesh is not None:
        whole = place(B, num_devices=1)
        arguments = training_arguments(config, B, whole)
        functions["undivided"] = _repeated(training_program(whole, *arguments).bind(*arguments), steps)
    with _steps_of_the_loop(config, steps) as functions["in_loop"]:
        seconds = time_interleaved(functions, dict.fromkeys(functions, turns))
    del seconds["first product"]
    number = dict.fromkeys(FORMS, steps) | {"product": PRODUCTS_A_TURN}
    timings = {form: spread([turn / number[form] for turn in found]) for form, found in seconds.items()}
    progress.step(f"profiling: {name}")
    found = profile(step, program, trace, TRACED_CALLS)
    return {**row, **timings, "steps_a_turn": steps, "flops": training_flops(config, B, T), "profile": found}


def _repeated(function: Function, number: int) -> Function:
    """Return a function that makes so many calls, and gives what the last one gives."""

    def calls() -> Any:
        for _ in range(number - 1):
            function()
        return function()

    return calls


@contextmanager
def _steps_of_the_loop(config: Config, steps: int) -> Generator[Function]:
    """Start a training of the last stage; a call of the function takes so many more of its steps."""
    from ttm_jax.training.jax_engine import JaxEngine  # and orbax, which takes a second
    from ttm_jax.training.loop import Stepped, train

    class WatchedEngine(JaxEngine):
        newest: Any = None

        def step(self, state: Any, arrays: Any, plan: Any) -> Any:
            state, metrics = super().step(state, arrays, plan)
            self.newest = metrics["loss"]
            return state, metrics

    config = replace(
        config,
        curriculum=replace(config.curriculum, start_stage=config.curriculum.last_stage),
        train=replace(config.train, eval_every_epochs=10**9, max_epochs=10**9),
    )
    engine = WatchedEngine(make_objective(config), config.optimizer, config.train.seed, config.data.batch_size)
    with tempfile.TemporaryDirectory() as folder:
        events: Any = train(config, make_task(config), engine, Path(folder) / "run")
        stepped = (event for event in events if isinstance(event, Stepped))

        def take_steps() -> Any:
            for _ in range(steps):
                next(stepped)
            return engine.newest  # the loop has only dispatched it

        with closing(events):  # where the measuring ends by an error, too
            yield take_steps


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
        for form, label in FORMS.items():
            if form in row:
                fraction = row["flops"] / row[form]["median_s"] / row["ceiling_flops_per_s"]
                steps.append([label, median(row[form]), quartiles(row[form]), percent(fraction)])
        ceiling = scaled(row["ceiling_flops_per_s"], "FLOP/s")
        steps.append(["the ceiling", median(row["product"]), quartiles(row["product"]), ceiling])
        alone, in_loop = row["alone"]["median_s"], row["in_loop"]["median_s"]
        divided = ratio(alone, row.get("undivided", {}).get("median_s"))
        shown = [row["flops_fraction"], *limits(row)]
        reached.append([row["config"], *map(percent, shown), times(in_loop / alone), times(divided)])
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
