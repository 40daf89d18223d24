"""JAX against its PyTorch twin, honestly: same weights, same batch, each in its own process, taking turns.

python -m parity.speed
"""

import argparse
import dataclasses
import fnmatch
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parity.speed_cases import Case, all_cases, quick_cases, write_weights
from parity.speed_process import Worker, WorkerError
from parity.speed_report import best_torch, summarize
from ttm_jax.cli import Parser, fail, positive_int

COMPILE_SECONDS = 300.0  # of a first call; more is reported as such
CASE_SECONDS = 40.0  # of timing, all variants of a case together
BURST_SECONDS = 0.2  # of timing, one turn of one variant
MAX_CALLS = 50  # a turn
ROUNDS = (5, 25)
TOLERANCES = {"float32": 1e-3, "bfloat16": 5e-2}  # of results, relative to their largest


class Disagreement(Exception):
    """Two variants do not compute the same: their times must not be compared."""


def check_agreement(values: dict[str, list[float]], tolerance: float) -> float:
    """The largest difference of the variants' results from the first one's, relative to its largest.

    Raises:
        Disagreement: naming the two variants, if that is not within the tolerance.
    """
    (first, expected), *others = values.items()
    scale = max(map(abs, expected))
    worst = 0.0
    for name, found in others:
        difference = max(abs(a - b) for a, b in zip(expected, found, strict=True)) / scale
        if not difference <= tolerance:
            raise Disagreement(f"{first} and {name} differ by {difference:.1e} of their results, allowed {tolerance}")
        worst = max(worst, difference)
    return worst


def measure(case: Case, workers: dict[str, Worker], folder: Path) -> dict[str, Any]:
    """Prepares the case in every worker, checks that they agree, and times them in turns.

    A worker that fails is stopped and taken out of `workers`; its cell says why.

    Raises:
        Disagreement: if the workers compute different things.
    """
    cells: dict[str, dict[str, Any]] = {}
    prepared = {}

    def ask(name: str, do: str, **arguments: Any) -> dict[str, Any] | None:
        try:
            return workers[name].ask(do, COMPILE_SECONDS, **arguments)
        except WorkerError as error:
            prepared.pop(name, None)
            workers.pop(name).stop()
            what = "first calls" if do == "prepare" else "timed calls"
            cells[name] = {**cells.get(name, {}), "failed": f"{what}: {error}"}
            return None

    for name in list(workers):
        write = {**dataclasses.asdict(case)}
        if reply := ask(name, "prepare", case=write, folder=str(folder)):
            prepared[name] = reply
            cells[name] = {"first_call_s": reply["first_call_s"]}
    agreement = None
    if len(prepared) > 1:
        agreement = check_agreement({n: r["values"] for n, r in prepared.items()}, TOLERANCES[case.dtype])
    calls = {name: min(max(int(BURST_SECONDS / reply["call_s"]), 1), MAX_CALLS) for name, reply in prepared.items()}
    round_seconds = sum(calls[name] * reply["call_s"] for name, reply in prepared.items())
    rounds = min(max(int(CASE_SECONDS / max(round_seconds, 1e-9)), ROUNDS[0]), ROUNDS[1])
    times: dict[str, list[list[float]]] = {name: [] for name in prepared}
    for _ in range(rounds):
        for name in list(prepared):
            if reply := ask(name, "run", calls=calls[name]):
                times[name].append(reply["seconds"])
                cells[name]["peak_mb"] = reply["peak_mb"]
                if not reply["finite"]:
                    raise Disagreement(f"{name} no longer computes finite numbers")
    for name, statistics in summarize({name: times[name] for name in prepared}).items():
        cells[name] |= {"calls": calls[name], **statistics}
    return {
        **{key: value for key, value in dataclasses.asdict(case).items() if key != "variants"},
        "name": case.name,
        "batch_size": case.batch_size,
        "optimizer": case.optimizer,
        "difference": agreement,
        "rounds": rounds,
        "variants": {name: cells[name] for name in case.variants if name in cells},
    }


def start_workers(case: Case, device: str, folder: Path, stack: ExitStack) -> tuple[dict[str, Worker], dict[str, Any]]:
    """A worker for each variant of the case, all ready, and what they say of themselves.

    Raises:
        WorkerError: naming the variant whose worker does not start.
    """
    workers = {}
    for name in case.variants:
        workers[name] = Worker(name, device, folder)
        stack.callback(workers[name].stop)
    said: dict[str, Any] = {}
    for name, worker in workers.items():
        try:
            said |= worker.hello()
        except WorkerError as error:
            raise WorkerError(f"{name} {error}") from None
    return workers, said


def run(cases: Iterable[Case], device: str) -> Iterable[tuple[dict[str, Any], dict[str, Any]]]:
    """Measures case after case; gives each as it is done, and where it was measured.

    Raises:
        Disagreement: naming the case.
        WorkerError: if a worker does not start.
    """
    for _, neighbours in itertools.groupby(cases, lambda case: (case.size, case.steps, case.dtype, case.variants)):
        group = list(neighbours)
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            workers, said = start_workers(group[0], device, folder, stack)
            for case in group:
                write_weights(case, folder)
                try:
                    yield measure(case, workers, folder), said
                except Disagreement as error:
                    raise Disagreement(f"{case.name}: {error}") from None


def line(case: dict[str, Any]) -> str:
    """A measured case in a few words."""
    best = best_torch(case)
    words = []
    for name, cell in case["variants"].items():
        if "ms" in cell:
            ratio = f" ({cell['ratio']['median']:.2f}x)" if "ratio" in cell else ""
            words.append(f"{name} {cell['ms']['median']:.1f} ms{ratio}{' *' if name == best else ''}")
        else:
            words.append(f"{name}: {cell['failed']}")
    return f"{case['name']}: " + ", ".join(words)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m parity.speed",
        description="Times JAX and its PyTorch twin on the same weights and batches, each in its own process, in turns.",
        epilog="example: python -m parity.speed --quick",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute")
    parser.add_argument("--quick", action="store_true", help="only the training steps of the two configs")
    parser.add_argument("--only", metavar="PATTERN", help="only cases whose name fits, such as 'paper-*/train'")
    parser.add_argument("--out", type=Path, default=Path("runs/speed"), help="folder of the results")
    args = parser.parse_args(argv)
    import jax

    from ttm_jax.run_folder import provenance

    jax.config.update("jax_platforms", "cpu")  # of this process, which computes nothing
    cases = quick_cases() if args.quick else all_cases()
    if args.only:
        cases = [case for case in cases if fnmatch.fnmatchcase(case.name, f"*{args.only}*")]
    if not cases:
        return fail(parser, f"--only {args.only} fits no case; names are such as {all_cases()[0].name}")
    measured = []
    start = time.perf_counter()
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        for done, said in run(cases, args.device):
            measured.append(done)
            print(f"[{len(measured)}/{len(cases)}, {time.perf_counter() - start:.0f} s] {line(done)}", flush=True)
            result = {**provenance(), "torch": version("torch"), **said, "cases": measured}
            (args.out / f"{args.device}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    except (Disagreement, WorkerError) as error:
        return fail(parser, error, 1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
