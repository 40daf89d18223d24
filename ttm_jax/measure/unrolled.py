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

from ttm_jax.cli import Progress
from ttm_jax.machine.machine import DEFAULT_REMAT, REMAT_POLICIES, TokenTuringMachine, TokenTuringMachineStep
from ttm_jax.measure.cost import machine_train_step
from ttm_jax.measure.profile import arithmetic_share, product_share, profile
from ttm_jax.measure.program import Program, Turns
from ttm_jax.measure.report import Table, median, percent, planned, planned_memory, quartiles, ratio, scaled, times
from ttm_jax.measure.workload import normal, random_variables
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
TRACED_CALLS = 3


def cases_of(steps: Sequence[int]) -> tuple[Case, ...]:
    """Make a case of few tokens and one of many for each number of steps."""
    return tuple(Case(T, N, B) for T in steps for N, B in ((16, 16), (3136, 1)))


CASES = cases_of(STEPS)


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
    budget_s: float = 15.0,
) -> dict[str, Any]:
    """Measure compile time, train step (gradient and Adam) and temporary memory of each form, in turns, for each case.

    Also measure the shares that the products of forward and backward pass, and all their arithmetic, have in the
    operations of the scan.
    """
    machine = machine or TokenTuringMachine(compat="scenic")
    progress.plan((len(SCANS) + 4) * len(cases))
    with jax.default_device(device):
        rows = [_row(case, machine, width, Turns(device, budget_s, most=100), progress) for case in cases]
    return {"width": width, "remat": DEFAULT_REMAT, "wanted": WANTED, "rows": rows}


def _row(case: Case, machine: TokenTuringMachine, width: int, turns: Turns, progress: Progress) -> dict[str, Any]:
    what = f"{case.steps} steps of {case.num_tokens} tokens"
    progress.step(f"initialising: {what}")
    optimizer = optax.adam(1e-3)
    tokens_BxTxNxD = normal(case.batch_size, case.steps, case.num_tokens, width)
    variables = random_variables(machine, tokens_BxTxNxD)
    scans = {name: machine.clone(remat=policy) for name, policy in SCANS.items()}
    whole, divided = (place(case.batch_size, num_devices=number) for number in (1, None))
    programs: dict[str, Program] = {}
    for name, form in {**scans, UNROLLED: Unrolled(machine)}.items():
        progress.step(f"compiling: {name}, {what}")
        if name in DIVIDED and divided.step_mesh is None:
            continue
        placement = divided if name in DIVIDED else whole
        fresh = jax.tree.map(jnp.copy, (variables, jax.jit(optimizer.init)(variables)))
        state, tokens = placement.replicate(fresh), placement.divide(tokens_BxTxNxD)
        step = machine_train_step(form, optimizer, placement.step_mesh)
        programs[name] = Program(step, state, tokens, carries=True, num_devices=len(placement.devices))
        turns.enter(name, programs[name], state, tokens)
    progress.step(f"timing: {what}")
    row = vars(case) | turns.time()
    progress.step(f"profiling: {what}")
    if SCAN in turns.functions:
        with tempfile.TemporaryDirectory() as folder:
            traced = profile(turns.functions[SCAN], programs[SCAN], Path(folder), TRACED_CALLS)
        row |= {"product_share": product_share(traced), "arithmetic_share": arithmetic_share(traced)}
    return row


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
    """Make a row a form, compare the unrolled one with each scan, and say how fast the first scan could be.

    That is estimated from the shares of its operations: with nothing made again and nothing copied, and with the
    products of forward and backward pass alone.
    """
    rows, compared, limits = [], [], []
    for row in section["rows"]:
        size = f"{row['steps']} x {row['num_tokens']:,}, {row['batch_size']}"
        for name in (*scans_of(row), UNROLLED):
            form = row[name]
            cells = [scaled(form["compile_s"], "s"), median(form), quartiles(form), planned_memory(form, "temporary")]
            rows.append([size, name, *cells])
        for name in scans_of(row):
            found = ratios(row[name], row[UNROLLED])
            compared.append([size, name, *(times(found[of]) for of in LABELS)])
        if "arithmetic_share" in row:
            shares = row["arithmetic_share"], row["product_share"]
            step = ratios(row[SCAN], row[UNROLLED])["step"]
            limits.append([size, *(cell for share in shares for cell in (percent(share), times(ratio(step, share))))])
    wanted, headings = section["wanted"], ["steps x tokens, batch", "form"]
    targets = ", ".join(times(wanted[of]) for of in LABELS)
    at = f"wanted at {wanted['steps']} x {wanted['num_tokens']} on two cores: {targets}"
    shown = [*headings, "compile", "train step", "quartiles", "temporary memory"]
    reached = [headings[0], "nothing made again or copied", "train step", "products alone", "train step"]
    return [
        Table('the same arithmetic (compat="scenic"), scanned and unrolled', shown, rows),
        Table(f"unrolled / scan ({at})", [*headings, *LABELS.values()], compared),
        *([Table("unrolled / scan, were the scan only a share of its operations", reached, limits)] if limits else []),
    ]
