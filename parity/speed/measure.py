"""Measures a case: workers that agree take turns, A B C A B C ..., one at a time."""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.speed.cases import GROWING, JAX, Case, write_weights
from parity.speed.process import Worker, WorkerError, WorkerTimeout, worker_command


def tolerance(dtype: str, device: str) -> float:
    """The largest difference of results, relative to their largest, of three calls; float32 is TF32 on CUDA."""
    return {"float32": 1e-3 if device == "cpu" else 1e-2, "bfloat16": 5e-2}[dtype]


@dataclass(frozen=True)
class Limits:
    """How long measuring may take.

    Attributes:
        first_call_s: a first call that takes longer is given up and said to have done so.
        case_s: of timed calls of a case, all variants together.
        turn_s: of timed calls in one turn of a variant.
        max_calls: in a turn.
        min_rounds, max_rounds: turns of each variant.
    """

    first_call_s: float = 300.0
    case_s: float = 15.0
    turn_s: float = 0.2
    max_calls: int = 1000
    min_rounds: int = 5
    max_rounds: int = 15


class Refused(Exception):
    """Variants that do not compute the same: their times mean nothing. The message is one line."""


def check_agreement(values: Mapping[str, Sequence[float]], tolerance: float) -> float:
    """The largest difference of results from those of the first variant, relative to its largest.

    Raises:
        Refused: naming the two variants, if it is above the tolerance or not a number.
    """
    (reference, expected), *others = values.items()
    scale = np.abs(expected).max()
    differences = [0.0]
    for name, found in others:
        difference = float(np.abs(np.subtract(found, expected)).max() / scale)
        if not difference <= tolerance:
            raise Refused(f"{name} differs from {reference} by {difference:.1e} of its results; allowed {tolerance:g}")
        differences.append(difference)
    return max(differences)


def plan(call_s: Mapping[str, float], limits: Limits) -> tuple[int, dict[str, int]]:
    """The number of rounds, and of calls in a turn of each variant, from the time of a call."""
    calls = {name: min(max(int(limits.turn_s / s), 1), limits.max_calls) for name, s in call_s.items()}
    round_s = sum(calls[name] * s for name, s in call_s.items())
    return min(max(int(limits.case_s / round_s), limits.min_rounds), limits.max_rounds), calls


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": median, "quartile_1": low, "quartile_3": high}


def summarize(turns_s: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Statistics of the seconds [round][call] of each variant.

    "ms" of the medians of the rounds, and "ratio" of those to JAX's in the same round: a slow spell of the machine
    falls on both.
    """
    rounds = {name: [statistics.median(calls) for calls in turns] for name, turns in turns_s.items()}
    result = {name: {"ms": quartiles([1e3 * s for s in medians])} for name, medians in rounds.items()}
    for name, medians in rounds.items() if JAX in rounds else ():
        result[name]["ratio"] = quartiles([s / base for s, base in zip(medians, rounds[JAX], strict=True)])
    return result


def not_tried(case: Case, variant: str, measured: Sequence[Mapping[str, Any]], limit_s: float) -> str | None:
    """Why a first call can't be expected to end in time, from that of the same case with fewer steps.

    None for a variant whose compilation does not grow with the steps.
    """
    if variant not in GROWING:
        return None
    same = [
        m for m in measured
        if (m["size"], m["dtype"], m["kind"]) == (case.size, case.dtype, case.kind) and m["steps"] < case.steps
    ]  # fmt: skip
    for fewer in sorted(same, key=lambda m: -m["steps"]):
        cell = fewer["variants"].get(variant, {})
        if "first_call_s" in cell:
            expected_s = cell["first_call_s"] * case.steps / fewer["steps"]
            if expected_s <= limit_s:
                return None
            took = f"the first call took {cell['first_call_s']:.0f} s with {fewer['steps']} steps"
            return (
                f"not tried: {took}, so that {expected_s:.0f} s are to be expected, above the limit of {limit_s:.0f} s"
            )
        if cell.get("timeout"):
            return f"not tried: {fewer['steps']} steps were too many already"
    return None


class Turns:
    """The workers of one case, and what came of each of them: a cell of the table a variant."""

    def __init__(self, workers: dict[str, Worker], limits: Limits, progress: Callable[[str], None]):
        self.workers, self.limits, self.progress = workers, limits, progress
        self.cells: dict[str, dict[str, Any]] = {}
        self.said: dict[str, Any] = {}

    def ask(self, name: str, do: str, **arguments: Any) -> dict[str, Any] | None:
        """The answer of a worker; None if it failed, which ends its part."""
        self.progress(f"{name}: {do.replace('_', ' ')}")
        try:
            worker = self.workers[name]
            return worker.hello() if do == "start" else worker.ask(do, self.limits.first_call_s, **arguments)
        except WorkerError as error:
            self.workers.pop(name).stop()
            timeout = isinstance(error, WorkerTimeout)
            what = "first calls" if do == "prepare" else do.replace("_", " ")
            self.cells[name] = {"failed": f"{what}: {error}", "timeout": timeout}
            return None

    def prepare(self, case: Case, folder: Path) -> dict[str, dict[str, Any]]:
        """The answers of the workers that are ready to be timed."""
        answers = {}
        for name in list(self.workers):
            if hello := self.ask(name, "start"):
                self.said |= {key: hello[key] for key in ("device", "threads")}
        for name in list(self.workers):
            if answer := self.ask(name, "prepare", case=dataclasses.asdict(case), folder=str(folder)):
                answers[name] = answer
                self.cells[name] = {"first_call_s": answer["first_call_s"]}
        return answers

    def time(self, rounds: int, calls: Mapping[str, int]) -> None:
        """Times all workers in turns.

        Raises:
            Refused: if a result is not finite.
        """
        turns_s: dict[str, list[list[float]]] = {name: [] for name in calls}
        idle: dict[str, list[float]] = {}
        for round_number in range(rounds):
            for name in list(self.workers):
                answer = self.ask(name, "time_calls", count=calls[name])
                if answer is None:
                    continue
                if not answer["finite"]:
                    raise Refused(f"{name} computes numbers that are not finite in round {round_number + 1}")
                turns_s[name].append(answer["seconds"])
                self.cells[name] |= {"calls": calls[name], "peak_mb": answer["peak_mb"]}
                idle.setdefault(name, []).append(answer["idle_cpu_s"] / answer["idle_s"])
        for name, figures in summarize({name: turns_s[name] for name in self.workers}).items():
            self.cells[name] |= {**figures, "idle_cpu": statistics.median(idle[name])}


def measure(
    case: Case,
    measured: Sequence[Mapping[str, Any]] = (),
    device: str = "cpu",
    limits: Limits = Limits(),
    progress: Callable[[str], None] = lambda _: None,
    command: Callable[[str, str], Sequence[str]] = worker_command,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Times a case in a fresh process for each variant.

    Args:
        case: what to time.
        measured: earlier results; a variant whose first call took so long with fewer steps that there is no hope is
            not tried.
        device: "cpu" or "cuda".
        limits: of time.
        progress: is told what is being done.
        command: gives what starts the worker of a variant and device.

    Returns:
        The result, plain values: of each variant its times or why there are none ("failed"), or for the whole case why
        it was refused ("refused"); and where it was measured.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        reasons = {name: not_tried(case, name, measured, limits.first_call_s) for name in case.variants}
        workers = {}
        for name in (name for name, reason in reasons.items() if reason is None):
            workers[name] = Worker(command(name, device), device, folder)
            stack.callback(workers[name].stop)
        write_weights(case, folder)
        turns = Turns(workers, limits, progress)
        answers = turns.prepare(case, folder)
        result: dict[str, Any] = {}
        try:
            if answers:
                values = {name: answer["values"] for name, answer in answers.items()}
                result["difference"] = check_agreement(values, tolerance(case.dtype, device))
                rounds, calls = plan({name: answer["call_s"] for name, answer in answers.items()}, limits)
                result["rounds"] = rounds
                turns.time(rounds, calls)
        except Refused as error:
            return {**_describe(case), "refused": str(error), "variants": {}}, turns.said
        skipped = {name: {"failed": reason, "timeout": True} for name, reason in reasons.items() if reason}
        cells = skipped | turns.cells
        return {**_describe(case), **result, "variants": {name: cells[name] for name in case.variants}}, turns.said


def _describe(case: Case) -> dict[str, Any]:
    fields = {name: value for name, value in dataclasses.asdict(case).items() if name != "variants"}
    return {"name": case.name, **fields, "batch_size": case.batch_size, "optimizer": case.optimizer}
