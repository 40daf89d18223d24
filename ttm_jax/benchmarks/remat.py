"""What a rematerialised step keeps for the backward pass: compile time, step, memory by policy."""

from typing import Any

import jax
import optax

from ttm_jax.benchmarks.progress import Progress
from ttm_jax.benchmarks.report import Table, median, quartiles, scaled
from ttm_jax.benchmarks.workload import normal, random_variables
from ttm_jax.cost import machine_train_step
from ttm_jax.machine import DEFAULT_REMAT, REMAT_POLICIES, TokenTuringMachine
from ttm_jax.program import Program
from ttm_jax.timing import affordable_calls, spread, time_interleaved

SHAPE = (16, 32, 16, 128)  # 16 sequences of 32 steps of 16 tokens of width 128
QUICK_SHAPE = (16, 6, 16, 128)


def measure(
    device: jax.Device,
    quick: bool,
    progress: Progress,
    shape: tuple[int, int, int, int] | None = None,
    machine: TokenTuringMachine | None = None,
    budget_s: float | None = None,
) -> dict[str, Any]:
    """Times a train step (gradient and Adam) of the machine under each policy, in turns."""
    shape = (QUICK_SHAPE if quick else SHAPE) if shape is None else shape
    machine = TokenTuringMachine() if machine is None else machine
    budget_s = (2.0 if quick else 20.0) if budget_s is None else budget_s
    optimizer, policies = optax.adam(1e-3), (False, *REMAT_POLICIES)
    programs, functions = {}, {}
    progress.plan(len(policies) + 1)
    with jax.default_device(device):
        tokens_BxTxNxD = normal(*shape)
        for policy in policies:
            name = policy or "none"
            progress.step(f"compiling: {name}")
            form = machine.clone(remat=policy)
            variables = random_variables(form, tokens_BxTxNxD)
            state = variables, jax.jit(optimizer.init)(variables)
            programs[name] = Program(machine_train_step(form, optimizer), state, tokens_BxTxNxD, carries=True)
            functions[name] = programs[name].bind(state, tokens_BxTxNxD)
        progress.step("timing")
        calls = min(affordable_calls(function, budget_s, most=100) for function in functions.values())
        timings = time_interleaved(functions, calls)
    rows = [
        {
            "policy": name,
            **spread(timings[name]),
            "compile_s": program.compile_s,
            "memory": program.memory_dict(),
        }
        for name, program in programs.items()
    ]
    return {"shape": list(shape), "default": DEFAULT_REMAT, "rows": rows}


def tables(section: dict[str, Any]) -> list[Table]:
    """A row a policy."""
    B, T, N, _ = section["shape"]
    rows = [
        [
            f"{row['policy']} (default)" if row["policy"] == section["default"] else row["policy"],
            scaled(row["compile_s"], "s"),
            median(row),
            quartiles(row),
            scaled(None if row["memory"] is None else row["memory"]["temporary"], "B"),
        ]
        for row in section["rows"]
    ]
    title = f"train step of the machine by what is kept of each step, batch {B}, {T} steps of {N} tokens"
    return [Table(title, ["kept", "compile", "train step", "quartiles", "temporary memory"], rows)]


def notes(section: dict[str, Any]) -> list[str]:
    """None: the table says all."""
    return []
