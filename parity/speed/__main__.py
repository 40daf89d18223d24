"""JAX against its PyTorch twin: same weights, same batch, each in its own process, taking turns.

python -m parity.speed
"""

import argparse
import dataclasses
import fnmatch
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from parity.needs import missing_device
from parity.speed.cases import ALL_VARIANTS, AUTOTUNE, Case, all_cases, quick_cases
from parity.speed.measure import Limits, measure
from parity.speed.report import draw, markdown, one_line, put_in_readme
from ttm_jax.cli import Parser, fail, positive_int
from ttm_jax.training.run_folder import provenance

SCRATCH = Path("runs/speed")
BUSY = 0.5  # load of others from which times are doubtful
OF_A_RUN = ("date", "command", "load_at_start")  # kept with each case: a resumed result has several


class Results:
    """The measured cases as files: DEVICE.json, and what follows from it, DEVICE.md and DEVICE.png."""

    def __init__(self, folder: Path, device: str):
        self.path = folder / f"{device}.json"
        self.values: dict[str, Any] = {"cases": []}

    def load(self) -> None:
        """Reads what is there.

        Raises:
            ValueError: if it is no result.
            OSError: if it cannot be read.
        """
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            markdown(values)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{self.path}: damaged, or not a result of this command") from None
        self.values = values

    def save(self) -> None:
        """Writes the JSON."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def save_report(self) -> list[Path]:
        """Writes page and chart; gives all files."""
        page, chart = self.path.with_suffix(".md"), self.path.with_suffix(".png")
        page.write_text(markdown(self.values), encoding="utf-8")
        draw(self.values, chart)
        return [path for path in (self.path, page, chart) if path.exists()]


def origin() -> dict[str, Any]:
    """Where results come from; the device is the workers' to say."""
    return {**provenance(), "torch": version("torch"), "load_at_start": os.getloadavg()[0]}


def comparable(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """The first thing that forbids to put results of two runs in one table; None where nothing does."""
    return next((name for name in b if name not in (*OF_A_RUN, "device", "backend") and a.get(name) != b[name]), None)


def select(quick: bool, only: str | None, variants: Sequence[str] | None) -> list[Case]:
    """The cases of the command's options."""
    cases = quick_cases() if quick else all_cases()
    if only is not None:
        cases = [case for case in cases if fnmatch.fnmatchcase(case.name, f"*{only}*")]
    return [dataclasses.replace(case, variants=tuple(variants)) for case in cases] if variants else cases


def run(
    cases: Sequence[Case], results: Results, device: str, limits: Limits, console: Console, about: dict[str, Any]
) -> int:
    """Measures cases, saving each with what is said `about` the run; how many cells failed but for lack of time."""
    failed = 0
    with _progress(console) as bar:
        task = bar.add_task("", total=len(cases), what="")
        for case in cases:

            def tell(doing: str, case: Case = case) -> None:
                bar.update(task, what=f"{case.name}, {doing}")

            result, said = measure(case, results.values["cases"], device, limits, tell)
            results.values |= said | {"backend": device}
            results.values["cases"].append({**result, "run": about})
            results.save()
            console.print(one_line(result), highlight=False, soft_wrap=True)
            failed += "refused" in result
            failed += sum("failed" in cell and not cell["timeout"] for cell in result["variants"].values())
            bar.advance(task)
    return failed


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    with Progress(
        MofNCompleteColumn(), BarColumn(bar_width=20), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(),
        TextColumn("{task.fields[what]}"), console=console, disable=not console.is_terminal,
    ) as bar:  # fmt: skip
        yield bar


def _parser() -> Parser:
    parser = Parser(
        prog="python -m parity.speed",
        description="Times JAX and its PyTorch twin on the same weights and batches: training step, inference and "
        "streaming step, eager and compiled, from the quick config to the paper's sizes. Each runs in its own process; "
        "they take turns, after their results have been seen to agree. Writes DEVICE.json, DEVICE.md and DEVICE.png.",
        epilog="examples:\n"
        "  python -m parity.speed --quick                  training steps of the two configs, minutes\n"
        "  python -m parity.speed --out results/speed      everything; alone on the machine\n"
        "  python -m parity.speed --only 'paper-16/*/train'\n"
        "  python -m parity.speed --report --out results/speed --readme docs/performance.md\n\n"
        "exit status: 0 done, 1 a variant failed or computes something else, 2 bad input, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to compute (cpu)")
    parser.add_argument("--quick", action="store_true", help="only the training steps of the two configs in float32")
    parser.add_argument("--only", metavar="PATTERN", help="only cases whose name has this in it; * is anything")
    parser.add_argument("--list", action="store_true", help="print the names of the cases and measure nothing")
    parser.add_argument(
        "--variants", nargs="+", choices=ALL_VARIANTS, metavar="VARIANT",
        help=f"of {', '.join(ALL_VARIANTS)} (all but {AUTOTUNE}; the unrolled where it is compared)",
    )  # fmt: skip
    parser.add_argument(
        "--first-call", type=positive_int, default=300, metavar="SECONDS",
        help="give a variant up whose first three calls, or a turn of timed ones, take longer, and say so (300)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help=f"folder of the results ({SCRATCH})")
    parser.add_argument("--resume", action="store_true", help="keep the cases that are in --out, measure the others")
    parser.add_argument("--report", action="store_true", help="measure nothing: page and chart from the JSON in --out")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also put the short table between its markers")
    parser.add_argument("--json", action="store_true", help="print the JSON in place of the page")
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command; see `--help` for its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    cases = select(args.quick, args.only, args.variants)
    if not cases:
        examples = ", ".join(case.name for case in all_cases()[:2])
        return fail(parser, f"--only {args.only} fits no case; names are such as {examples}; --list prints them")
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    results = Results(args.out or SCRATCH, args.device)
    if problem := None if args.report else missing_device(args.device):
        return fail(parser, problem)
    try:
        return _report(results, args) if args.report else _measure(parser, cases, results, args)
    except ValueError as error:
        return fail(parser, error)
    except OSError as error:
        return fail(parser, f"{error.filename}: {error.strerror}")


def _measure(parser: Parser, cases: list[Case], results: Results, args: argparse.Namespace) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # of this process, which computes nothing
    here = origin()
    console = Console(stderr=True)
    if here["load_at_start"] > BUSY:
        load = f"the machine is busy (load {here['load_at_start']:.1f})"
        console.print(f"{load}: PyTorch's threads wait for each other, and its times mean little", soft_wrap=True)
    if args.out and results.path.exists() and not args.resume:
        raise ValueError(f"{results.path} is there already: --resume adds to it; move it away to measure anew")
    if args.resume and results.path.exists():
        results.load()
        if name := comparable(results.values, here):
            raise ValueError(
                f"{results.path} cannot be resumed: its {name} is {results.values.get(name)!r}, not {here[name]!r}"
            )
        done = {case["name"] for case in results.values["cases"]}
        cases = [case for case in cases if case.name not in done]
    about = {name: here.pop(name) for name in OF_A_RUN}
    results.values |= here
    limits = Limits(first_call_s=args.first_call)
    try:
        failed = run(cases, results, args.device, limits, console, about)
    except KeyboardInterrupt:
        if not (measured := len(results.values["cases"])):
            return fail(parser, "interrupted before the first case was measured", 130)
        results.save_report()
        return fail(parser, f"interrupted; {measured} cases measured; --resume goes on from {results.path}", 130)
    _report(results, args)
    if failed:
        return fail(parser, f"{failed} measurements failed: {results.path.with_suffix('.md')} says which and why", 1)
    return 0


def _report(results: Results, args: argparse.Namespace) -> int:
    if args.report:
        results.load()
    files = results.save_report()
    print(json.dumps(results.values) if args.json else markdown(results.values))
    if args.readme:
        try:
            text = put_in_readme(args.readme.read_text(encoding="utf-8"), results.values)
        except ValueError as error:
            raise ValueError(f"{args.readme}: {error}") from None
        args.readme.write_text(text, encoding="utf-8")
        files.append(args.readme)
    print(f"written: {', '.join(map(str, files))}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
