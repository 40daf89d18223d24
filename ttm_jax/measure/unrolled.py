"""The same arithmetic as one `lax.scan` over the steps, and unrolled in Python as the original has it.

Both are `compat="scenic"`: the same parameters, the same step, the same loss and optimiser; only the loop differs, and
that the scan recomputes each step in the backward pass, by each of the machine's policies. A scan is also run as
training runs it on a processor: with the batch divided between the cores, where it is large enough.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from ttm_jax.machine.machine import DEFAULT_REMAT, REMAT_POLICIES, TokenTuringMachine, TokenTuringMachineStep
from ttm_jax.measure.cost import machine_train_step
from ttm_jax.measure.profile import arithmetic_share, product_share, profile
from ttm_jax.measure.program import Program
from ttm_jax.measure.progress import Progress
from ttm_jax.measure.report import Table, median, percent, quartiles, scaled, times
from ttm_jax.measure.timing import affordable_calls, spread, time_interleaved
from ttm_jax.measure.workload import normal, random_variables, too_large
from ttm_jax.training.mesh import place

SCAN, UNROLLED = "scan", "unrolled"
# The scan under the default policy, then under the others; then with the batch divided between the cores.
_UNDIVIDED = {SCAN: DEFAULT_REMAT} | {f"{SCAN}, {name}": name for name in REMAT_POLICIES if name != DEFAULT_REMAT}
DIVIDED = {f"{name}, divided": policy for name, policy in _UNDIVIDED.items()}
SCANS = _UNDIVIDED | DIVIDED
LABELS = {"compile": "compile", "step": "train step", "temporary": "temporary memory"}
WANTED = {"steps": 32, "num_tokens": 16, "compile": 10.0, "step": 1.5, "temporary": 10.0}


@dataclass(frozen=True)
class Case:
    """T steps of N tokens, B sequences at a time."""

    steps: int
    num_tokens: int
    batch_size: int


STEPS = (6, 32, 128)
QUICK_CASES = (Case(6, 16, 16),)
TRACED_CALLS = 3


def cases_of(steps: Sequence[int] = STEPS) -> tuple[Case, ...]:
    """Each number of steps with few tokens and with many."""
    return tuple(Case(T, N, B) for T in steps for N, B in ((16, 16), (3136, 1)))


class Unrolled:
    """The machine's `apply` with a Python loop over the steps, as the original's encoder has it.

    Args:
        machine: whose steps they are. Its `remat` is not looked at: the original recomputes nothing.
        remat: recompute each step in the backward pass, by the machine's default policy.
    """

    def __init__(self, machine: TokenTuringMachine, remat: bool = False):
        fields = TokenTuringMachineStep.__dataclass_fields__.keys() - {"parent", "name"}
        self._memory_size = machine.memory_size
        self._step: Callable[..., Any] = TokenTuringMachineStep(**{f: getattr(machine, f) for f in fields}).apply
        if remat:
            self._step = jax.checkpoint(self._step, policy=REMAT_POLICIES[DEFAULT_REMAT])

    def apply(self, variables: Any, tokens_BxTxNxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Outputs [B, T, R, D] and the last memory [B, M, D], with the scanned machine's own variables."""
        params = variables["params"]
        B, T, _, D = tokens_BxTxNxD.shape
        size = self._memory_size, D
        memory_BxMxD, outputs = jnp.broadcast_to(params.get("initial_memory", jnp.zeros(size)), (B, *size)), []
        for t in range(T):
            memory_BxMxD, output_BxRxD = self._step({"params": params["step"]}, memory_BxMxD, tokens_BxTxNxD[:, t])
            outputs.append(output_BxRxD)
        return jnp.stack(outputs, axis=1), memory_BxMxD


def measure(
    device: jax.Device,
    quick: bool,
    progress: Progress,
    cases: Sequence[Case] | None = None,
    machine: TokenTuringMachine | None = None,
    width: int = 128,
    budget_s: float | None = None,
) -> dict[str, Any]:
    """Compile time, train step (gradient and Adam) and temporary memory of each form, in turns, for each case.

    And the shares that the products of forward and backward pass, and all their arithmetic, have in the operations of
    the scan.
    """
    cases = (QUICK_CASES if quick else cases_of()) if cases is None else cases
    machine = TokenTuringMachine(compat="scenic") if machine is None else machine
    budget_s = (2.0 if quick else 15.0) if budget_s is None else budget_s
    progress.plan((len(SCANS) + 4) * len(cases))
    with jax.default_device(device):
        rows = [_row(case, machine, width, device, progress, budget_s) for case in cases]
    return {"width": width, "remat": DEFAULT_REMAT, "wanted": WANTED, "rows": rows}


def _row(
    case: Case, machine: TokenTuringMachine, width: int, device: jax.Device, progress: Progress, budget_s: float
) -> dict[str, Any]:
    what = f"{case.steps} steps of {case.num_tokens} tokens"
    progress.step(f"initialising: {what}")
    optimizer = optax.adam(1e-3)
    shape = case.batch_size, case.steps, case.num_tokens, width
    tokens_BxTxNxD = normal(*shape)
    variables = random_variables(machine, tokens_BxTxNxD)
    row: dict[str, Any] = vars(case).copy()
    functions: dict[str, Callable[[], Any]] = {}
    programs: dict[str, Program] = {}
    scans = {name: machine.clone(remat=policy) for name, policy in SCANS.items()}
    whole, divided = (place(case.batch_size, num_devices=number) for number in (1, None))
    for name, form in {**scans, UNROLLED: Unrolled(machine)}.items():
        if name in DIVIDED and divided.step_mesh is None:
            progress.step(f"left out: {name}, {what}")
            continue
        progress.step(f"compiling: {name}, {what}")
        placement = divided if name in DIVIDED else whole
        fresh = jax.tree.map(jnp.copy, (variables, jax.jit(optimizer.init)(variables)))
        state, tokens = placement.replicate(fresh), placement.divide(tokens_BxTxNxD)
        step = machine_train_step(form, optimizer, placement.step_mesh)
        program = Program(step, state, tokens, carries=True, num_devices=len(placement.devices))
        row[name] = {"compile_s": program.compile_s, "memory": program.memory_dict()}
        if reason := too_large(program, device):
            row[name]["skipped"] = reason
            continue
        programs[name], functions[name] = program, program.bind(state, tokens)
    progress.step(f"timing: {what}")
    if functions:
        calls = min(affordable_calls(function, budget_s, most=100) for function in functions.values())
        for name, seconds in time_interleaved(functions, calls).items():
            row[name].update(spread(seconds))
    progress.step(f"profiling: {what}")
    if SCAN in functions:
        with tempfile.TemporaryDirectory() as folder:
            traced = profile(functions[SCAN], programs[SCAN], Path(folder), TRACED_CALLS)
            row |= {"product_share": product_share(traced), "arithmetic_share": arithmetic_share(traced)}
    return row


def ratios(scan: dict[str, Any], unrolled: dict[str, Any]) -> dict[str, float | None]:
    """How many times as much the unrolled form takes; None for what is not known."""

    def ratio(of: Callable[[dict[str, Any]], float | None]) -> float | None:
        ours, theirs = of(scan), of(unrolled)
        return None if ours is None or theirs is None else theirs / ours

    return {
        "compile": ratio(lambda form: form["compile_s"]),
        "step": ratio(lambda form: form.get("median_s")),
        "temporary": ratio(lambda form: None if form["memory"] is None else form["memory"]["temporary"]),
    }


def tables(section: dict[str, Any]) -> list[Table]:
    """A row a form, then how many times as much the unrolled one takes as each scan."""
    headings = ["steps x tokens, batch", "form", "compile", "train step", "quartiles", "temporary memory"]
    rows, compared = [], []
    for row in section["rows"]:
        size = f"{row['steps']} x {row['num_tokens']:,}, {row['batch_size']}"
        for name in (*scans_of(row), UNROLLED):
            form, memory = row[name], row[name]["memory"]
            step = ["not run", "-"] if "skipped" in form else [median(form), quartiles(form)]
            temporary = scaled(None if memory is None else memory["temporary"], "B")
            rows.append([size, name, scaled(form["compile_s"], "s"), *step, temporary])
        for name in scans_of(row):
            found = ratios(row[name], row[UNROLLED])
            compared.append([size, name, *(times(found[of]) for of in LABELS)])
    return [
        Table('the same arithmetic (compat="scenic"), scanned and unrolled', headings, rows),
        Table("unrolled / scan", [*headings[:2], *LABELS.values()], compared),
    ]


def scans_of(row: dict[str, Any]) -> list[str]:
    """The forms of the scan that a row has."""
    return [name for name in SCANS if name in row]


def notes(section: dict[str, Any]) -> list[str]:
    """The ratios beside what is wanted of them on two CPU cores."""
    wanted = section["wanted"]
    where = f"{wanted['steps']} steps of {wanted['num_tokens']} tokens"
    for row in section["rows"]:
        if (row["steps"], row["num_tokens"]) == (wanted["steps"], wanted["num_tokens"]):
            targets = ", ".join(f"{label} {times(wanted[of])}" for of, label in LABELS.items())
            found = "; ".join(f"{name}: {_verdicts(row, name, wanted)}" for name in scans_of(row))
            limit = f" {_limit(row)}" if row.get("arithmetic_share") and "median_s" in row[UNROLLED] else ""
            return [f"Unrolled / scan at {where}, of which are wanted on two CPU cores {targets}. {found}.{limit}"]
    return [f"At {where}, for which ratios are wanted, nothing was measured."]


def _verdicts(row: dict[str, Any], scan: str, wanted: dict[str, Any]) -> str:
    found = ratios(row[scan], row[UNROLLED])
    return ", ".join(_verdict(label, found[of], wanted[of]) for of, label in LABELS.items())


def _verdict(label: str, ratio: float | None, wanted: float) -> str:
    met = "" if ratio is None else " (met)" if ratio >= wanted else " (not met)"
    return f"{label} {times(ratio)}{met}"


def _limit(row: dict[str, Any]) -> str:
    """How far the train step's ratio could go if only the arithmetic that any form does were left of the scan."""
    shares = [row[name] for name in ("arithmetic_share", "product_share")]
    limits = [times(row[UNROLLED]["median_s"] / (share * row[SCAN]["median_s"])) for share in shares]
    return (
        f"What any form has to compute is {percent(shares[0])} of the operations of {SCAN}: were nothing made again "
        f"and nothing copied, the ratio of its train step would be {limits[0]}. The products of forward and backward "
        f"pass are {percent(shares[1])}: were they all that it does, {limits[1]}."
    )
