"""What a rematerialised step keeps for the backward pass: compile time, step, memory by policy."""

from collections.abc import Sequence
from typing import Any

import jax

from ttm_jax.cli import Progress
from ttm_jax.machine.machine import DEFAULT_REMAT, REMAT_POLICIES, TokenTuringMachine
from ttm_jax.measure.program import Turns
from ttm_jax.measure.report import Table, median, planned_memory, quartiles, scaled
from ttm_jax.measure.workload import enter_train_step, normal, random_variables
from ttm_jax.training.mesh import place

TITLE, FLAG = "Rematerialisation", "--remat"
Shape = tuple[int, int, int, int]  # [B, T, N, D]

SHAPES: tuple[Shape, ...] = ((16, 32, 16, 128), (4, 8, 16, 768))
QUICK = {"shapes": ((16, 6, 16, 128),), "budget_s": 2.0}
_POLICIES = (False, *REMAT_POLICIES)


def measure(
    device: jax.Device,
    progress: Progress,
    shapes: Sequence[Shape] = SHAPES,
    machine: TokenTuringMachine | None = None,
    budget_s: float = 20.0,
) -> dict[str, Any]:
    """Time a train step (gradient and Adam) of the machine under each policy, in turns, for each shape of tokens."""
    machine = machine or TokenTuringMachine()
    progress.plan(len(shapes) * (len(_POLICIES) + 1))
    measured = []
    with jax.default_device(device):
        for shape in shapes:
            turns, tokens_BxTxNxD = Turns(device, budget_s, most=100), normal(*shape)
            variables, whole = random_variables(machine, tokens_BxTxNxD), place(shape[0], num_devices=1)
            for policy in _POLICIES:
                name = policy or "none"
                progress.step(f"compiling: {name}, width {shape[-1]}")
                enter_train_step(turns, name, machine.clone(remat=policy), variables, tokens_BxTxNxD, whole)
            progress.step("timing")
            rows = [{"policy": name, **row} for name, row in turns.time().items()]
            measured.append({"shape": list(shape), "rows": rows})
    return {"default": DEFAULT_REMAT, "shapes": measured}


def tables(section: dict[str, Any]) -> list[Table]:
    """Make a table a shape, a row a policy."""
    found = []
    for measured in section["shapes"]:
        rows = []
        for row in measured["rows"]:
            name = f"{row['policy']} (default)" if row["policy"] == section["default"] else row["policy"]
            rows.append(
                [name, scaled(row["compile_s"], "s"), median(row), quartiles(row), planned_memory(row, "temporary")]
            )
        B, T, N, D = measured["shape"]
        title = f"train step by what is kept of each step: width {D}, batch {B}, {T} steps of {N} tokens"
        found.append(Table(title, ["kept", "compile", "train step", "quartiles", "temporary memory"], rows))
    return found
