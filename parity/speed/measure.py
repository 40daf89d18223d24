"""The measurement of a case: workers that agree take turns, A B C A B C ..., one at a time."""

import dataclasses
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from parity.speed.cases import JAX, Case, write_weights
from parity.speed.process import Worker, WorkerError, WorkerTimeout, worker_command

START_SECONDS = 120.0


def tolerance(dtype: str, device: str) -> float:
    """Return by how much results may differ, relative to their largest, in three calls; float32 is TF32 on CUDA."""
    return {"float32": 1e-3 if device == "cpu" else 1e-2, "bfloat16": 5e-2}[dtype]


@dataclass(frozen=True)
class Limits:
    """How long measuring may take."""

    first_call_s: float = 300.0  # a first call that takes longer is given up and said to have done so
    case_s: float = 15.0  # of timed calls of a case, all variants together
    turn_s: float = 0.2  # of timed calls in one turn of a variant
    max_calls: int = 1000  # in a turn
    min_rounds: int = 5  # turns of each variant
    max_rounds: int = 15


class Refused(Exception):
    """Variants that do not compute the same: their times mean nothing. The message is one line."""


def check_agreement(values: Mapping[str, Sequence[float]], tolerance: float) -> float:
    """Return the largest difference of results from those of the first variant, relative to its largest.

    Raises Refused, with the names of the two, where it is above the tolerance or not a number.
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
    """Plan the number of rounds, and of calls in a turn of each variant, from the time of a call."""
    calls = {name: min(max(int(limits.turn_s / s), 1), limits.max_calls) for name, s in call_s.items()}
    round_s = sum(calls[name] * s for name, s in call_s.items())
    return min(max(int(limits.case_s / round_s), limits.min_rounds), limits.max_rounds), calls


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [*values] * 3
    return {"median": median, "quartile_1": low, "quartile_3": high}


def summarize(turns_s: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Sum up the seconds [round][call] of each variant by median and quartiles.

    "ms" are those of the medians of the rounds. "ratio" are those of the medians by JAX's in the same round: a slow
    spell of the machine falls on both.
    """
    rounds = {name: [statistics.median(calls) for calls in turns] for name, turns in turns_s.items()}
    result = {name: {"ms": quartiles([1e3 * s for s in medians])} for name, medians in rounds.items()}
    for name, medians in rounds.items() if JAX in rounds else ():
        result[name]["ratio"] = quartiles([s / base for s, base in zip(medians, rounds[JAX], strict=True)])
    return result


class Turns:
    """The workers of one case, and what came of each of them: a cell of the table a variant."""

    def __init__(self, workers: dict[str, Worker], limits: Limits, progress: Callable[[str], None]):
        self.workers, self.limits, self.progress = workers, limits, progress
        self.cells: dict[str, dict[str, Any]] = {}

    def ask_all(self, do: str, what: str, **arguments: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the answers of the workers, one after the other; end one that fails, and say why in its cell.

        Each argument is given by worker.
        """
        answers = {}
        for name, worker in list(self.workers.items()):
            self.progress(f"{name}: {what}")
            timeout = START_SECONDS if do == "describe" else self.limits.first_call_s
            try:
                own = {key: values[name] for key, values in arguments.items()}
                answers[name] = worker.ask(do, timeout, **own)
            except WorkerError as error:
                self.workers.pop(name).stop()
                self.cells[name] = {"failed": f"{what}: {error}", "timeout": isinstance(error, WorkerTimeout)}
        return answers

    def time(self, rounds: int, calls: Mapping[str, int]) -> None:
        """Time all workers in turns; raise Refused where a result is not finite."""
        turns_s: dict[str, list[list[float]]] = {name: [] for name in calls}
        for round_number in range(rounds):
            for name, answer in self.ask_all("time_calls", "time calls", count=calls).items():
                if not answer["finite"]:
                    raise Refused(f"{name} computes numbers that are not finite in round {round_number + 1}")
                turns_s[name].append(answer["seconds"])
                self.cells[name] |= {"calls": calls[name], "peak_mb": answer["peak_mb"]}
        for name, figures in summarize({name: turns_s[name] for name in self.workers}).items():
            self.cells[name] |= figures


def measure(
    case: Case,
    device: str = "cpu",
    limits: Limits = Limits(),
    progress: Callable[[str], None] = lambda _: None,
    command: Callable[[str, str], Sequence[str]] = worker_command,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Time a case in a fresh process for each variant, started by what `command` returns.

    Returns:
        The result as plain values, and where it was measured. The result has the times of each variant or why there are
        none ("failed"), or for the whole case why it was refused ("refused").
    """
    fields = {name: value for name, value in dataclasses.asdict(case).items() if name != "variants"}
    result: dict[str, Any] = {"name": case.name, **fields, "batch_size": case.batch_size, "optimizer": case.optimizer}
    said: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {name: Worker(command(name, device), device, folder) for name in case.variants}
        for worker in workers.values():
            stack.callback(worker.stop)
        write_weights(case, folder)
        turns = Turns(dict(workers), limits, progress)
        for answer in turns.ask_all("describe", "start").values():
            said |= {key: answer[key] for key in ("device", "threads")}
        # Only variants whose first calls agree are timed.
        asked = {"case": dataclasses.asdict(case), "folder": str(folder)}
        every = {key: dict.fromkeys(workers, value) for key, value in asked.items()}
        answers = turns.ask_all("prepare", "first calls", **every)
        turns.cells |= {name: {"first_call_s": answer["first_call_s"]} for name, answer in answers.items()}
        try:
            if answers:
                values = {name: answer["values"] for name, answer in answers.items()}
                result["difference"] = check_agreement(values, tolerance(case.dtype, device))
                result["rounds"], calls = plan({name: answer["call_s"] for name, answer in answers.items()}, limits)
                turns.time(result["rounds"], calls)
        except Refused as error:
            return {**result, "refused": str(error), "variants": {}}, said
        return {**result, "variants": {name: turns.cells[name] for name in case.variants}}, said
