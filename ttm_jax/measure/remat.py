"""What a rematerialised step keeps for the backward pass: compile time, step, memory by policy."""

from collections.abc import Sequence
from typing import Any

import jax
import optax

from ttm_jax.machine.machine import DEFAULT_REMAT, REMAT_POLICIES, TokenTuringMachine
from ttm_jax.measure.cost import machine_train_step
from ttm_jax.measure.program import Program
from ttm_jax.measure.progress import Progress
from ttm_jax.measure.report import Table, median, quartiles, scaled
from ttm_jax.measure.timing import affordable_calls, spread, time_interleaved
from ttm_jax.measure.workload import normal, random_variables, too_large

Shape = tuple[int, int, int, int]  # [B, T, N, D]

SHAPES: tuple[Shape, ...] = ((16, 32, 16, 128), (4, 8, 16, 768))
QUICK_SHAPES: tuple[Shape, ...] = ((16, 6, 16, 128),)
_POLICIES = (False, *REMAT_POLICIES)


def measure(
    device: jax.Device,
    quick: bool,
    progress: Progress,
    shapes: Sequence[Shape] | None = None,
    machine: TokenTuringMachine | None = None,
    budget_s: float | None = None,
) -> dict[str, Any]:
    """Times a train step (gradient and Adam) of the machine under each policy, in turns, for each shape of tokens."""
    shapes = (QUICK_SHAPES if quick else SHAPES) if shapes is None else shapes
    machine = TokenTuringMachine() if machine is None else machine
    budget_s = (2.0 if quick else 20.0) if budget_s is None else budget_s
    progress.plan(len(shapes) * (len(_POLICIES) + 1))
    with jax.default_device(device):
        measured = [
            {"shape": list(shape), "rows": _rows(machine, shape, device, progress, budget_s)} for shape in shapes
        ]
    return {"default": DEFAULT_REMAT, "shapes": measured}


def _rows(
    machine: TokenTuringMachine, shape: Shape, device: jax.Device, progress: Progress, budget_s: float
) -> list[dict[str, Any]]:
    optimizer = optax.adam(1e-3)
    rows, functions = {}, {}
    tokens_BxTxNxD = normal(*shape)
    for policy in _POLICIES:
        name = policy or "none"
        progress.step(f"compiling: {name}, width {shape[-1]}")
        form = machine.clone(remat=policy)
        variables = random_variables(form, tokens_BxTxNxD)
        state = variables, jax.jit(optimizer.init)(variables)
        program = Program(machine_train_step(form, optimizer), state, tokens_BxTxNxD, carries=True)
        rows[name] = {"policy": name, "compile_s": program.compile_s, "memory": program.memory_dict()}
        if reason := too_large(program, device):
            rows[name]["skipped"] = reason
            continue
        functions[name] = program.bind(state, tokens_BxTxNxD)
    progress.step("timing")
    if functions:
        calls = min(affordable_calls(function, budget_s, most=100) for function in functions.values())
        for name, seconds in time_interleaved(functions, calls).items():
            rows[name].update(spread(seconds))
    return list(rows.values())


def tables(section: dict[str, Any]) -> list[Table]:
    """A row a policy, a table a shape."""
    return [_table(measured, section["default"]) for measured in section["shapes"]]


def _table(measured: dict[str, Any], default: str) -> Table:
    B, T, N, D = measured["shape"]
    rows = [
        [
            f"{row['policy']} (default)" if row["policy"] == default else row["policy"],
            scaled(row["compile_s"], "s"),
            *(["not run", "-"] if "skipped" in row else [median(row), quartiles(row)]),
            scaled(None if row["memory"] is None else row["memory"]["temporary"], "B"),
        ]
        for row in measured["rows"]
    ]
    title = f"train step by what is kept of each step: width {D}, batch {B}, {T} steps of {N} tokens"
    return Table(title, ["kept", "compile", "train step", "quartiles", "temporary memory"], rows)


def notes(section: dict[str, Any]) -> list[str]:
    """What was not run."""
    return [
        f"{row['policy']}, width {measured['shape'][-1]}: not run: it {row['skipped']}."
        for measured in section["shapes"]
        for row in measured["rows"]
        if "skipped" in row
    ]
