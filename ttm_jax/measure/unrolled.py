"""The same arithmetic as one `lax.scan` over the steps, and unrolled in Python as the original has it.

Both are `compat="scenic"`: the same parameters, the same step, the same loss and optimiser; only the loop differs, and
that the scan recomputes each step in the backward pass, by each of the machine's policies. A scan is also run as
training runs it on a processor: with the batch divided between the cores, where it is large enough.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ttm_jax.cli import Progress
from ttm_jax.machine.machine import DEFAULT_REMAT, REMAT_POLICIES, TokenTuringMachine, TokenTuringMachineStep
from ttm_jax.measure.program import Turns
from ttm_jax.measure.report import Table, median, planned, planned_memory, quartiles, ratio, scaled, times
from ttm_jax.measure.workload import enter_train_step, normal, random_variables
from ttm_jax.training.mesh import place

TITLE, FLAG = "Scanned and unrolled", "--against-unrolled"
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
QUICK = {"cases": (Case(6, 16, 16),), "budget_s": 2.0}


def cases_of(steps: Sequence[int]) -> tuple[Case, ...]:
    """Make a case of few tokens and one of many for each number of steps."""
    return tuple(Case(T, N, B) for T in steps for N, B in ((16, 16), (3136, 1)))


CASES = cases_of(STEPS)


class Unrolled:
    """The machine with a Python loop over its steps, as the original's encoder has it; nothing is recomputed."""

    def __init__(self, machine: TokenTuringMachine):
        fields = TokenTuringMachineStep.__dataclass_fields__.keys() - {"parent", "name"}
        self._memory_size = machine.memory_size
        self._step: Callable[..., Any] = TokenTuringMachineStep(**{f: getattr(machine, f) for f in fields}).apply

    def apply(self, variables: Any, tokens_BxTxNxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return outputs [B, T, R, D] and the last memory [B, M, D], with the scanned machine's own variables."""
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
    progress: Progress,
    cases: Sequence[Case] = CASES,
    machine: TokenTuringMachine | None = None,
    width: int = 128,
    scans: Mapping[str, str] = SCANS,
    budget_s: float = 15.0,
) -> dict[str, Any]:
    """Measure compile time, train step (gradient and Adam) and temporary memory of each form, in turns."""
    machine = machine or TokenTuringMachine(compat="scenic")
    forms = {name: machine.clone(remat=policy) for name, policy in scans.items()} | {UNROLLED: Unrolled(machine)}
    progress.plan((len(forms) + 2) * len(cases))
    rows = []
    with jax.default_device(device):
        for case in cases:
            what = f"{case.steps} steps of {case.num_tokens} tokens"
            progress.step(f"initialising: {what}")
            turns = Turns(device, budget_s, most=100)
            tokens_BxTxNxD = normal(case.batch_size, case.steps, case.num_tokens, width)
            variables = random_variables(machine, tokens_BxTxNxD)
            whole, divided = (place(case.batch_size, num_devices=number) for number in (1, None))
            for name, form in forms.items():
                progress.step(f"compiling: {name}, {what}")
                placement = divided if name in DIVIDED else whole
                if name not in DIVIDED or placement.step_mesh is not None:
                    enter_train_step(turns, name, form, variables, tokens_BxTxNxD, placement)
            progress.step(f"timing: {what}")
            rows.append(vars(case) | turns.time())
    return {"width": width, "remat": DEFAULT_REMAT, "wanted": WANTED, "rows": rows}


def ratios(scan: dict[str, Any], unrolled: dict[str, Any]) -> dict[str, float | None]:
    """Return how many times as much the unrolled form takes; None for what is not known."""
    return {
        "compile": unrolled["compile_s"] / scan["compile_s"],
        "step": ratio(unrolled.get("median_s"), scan.get("median_s")),
        "temporary": ratio(planned(unrolled, "temporary"), planned(scan, "temporary")),
    }


def scans_of(row: dict[str, Any]) -> list[str]:
    """List the forms of the scan that a row has."""
    return [name for name in SCANS if name in row]


def tables(section: dict[str, Any]) -> list[Table]:
    """Make a row a form, and compare the unrolled one with each scan."""
    rows, compared = [], []
    for row in section["rows"]:
        size = f"{row['steps']} x {row['num_tokens']:,}, {row['batch_size']}"
        for name in (*scans_of(row), UNROLLED):
            form = row[name]
            cells = [scaled(form["compile_s"], "s"), median(form), quartiles(form), planned_memory(form, "temporary")]
            rows.append([size, name, *cells])
        for name in scans_of(row):
            found = ratios(row[name], row[UNROLLED])
            compared.append([size, name, *(times(found[of]) for of in LABELS)])
    wanted, headings = section["wanted"], ["steps x tokens, batch", "form"]
    targets = ", ".join(times(wanted[of]) for of in LABELS)
    at = f"wanted at {wanted['steps']} x {wanted['num_tokens']} on two cores: {targets}"
    shown = [*headings, "compile", "train step", "quartiles", "temporary memory"]
    return [
        Table('the same arithmetic (compat="scenic"), scanned and unrolled', shown, rows),
        Table(f"unrolled / scan ({at})", [*headings, *LABELS.values()], compared),
    ]
