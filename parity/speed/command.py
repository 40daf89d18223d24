"""The command that measures JAX against its PyTorch twin: `python -m parity.speed`."""

import argparse
import dataclasses
import fnmatch
import json
import os
import signal
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from parity.needs import missing_device
from parity.speed.cases import VARIANTS, Case, all_cases, quick_cases
from parity.speed.measure import Limits, measure
from parity.speed.report import markdown, one_line, readme_table
from ttm_jax.cli import Parser, fail, positive_int, show_progress
from ttm_jax.files import FileError, read_json, write_json
from ttm_jax.measure.report import put_block
from ttm_jax.training.run_folder import provenance

SCRATCH = Path("runs/speed")
BUSY = 0.5  # load of others from which times are doubtful
OF_A_RUN = ("date", "command", "load_at_start")  # kept with each case: a resumed result has several

Values = dict[str, Any]


def load(path: Path) -> Values:
    """Read a result, or raise FileError where it is none."""
    values = read_json(path)
    try:
        markdown(values)
    except (KeyError, TypeError, AttributeError):
        raise FileError(f"{path}: not a result of this command; move it away") from None
    return values


def select(args: argparse.Namespace) -> list[Case]:
    """Select the cases of the command's options."""
    cases = quick_cases() if args.quick else all_cases()
    cases = [case for case in cases if fnmatch.fnmatchcase(case.name, f"*{args.only}*")]
    if args.variants:
        cases = [dataclasses.replace(case, variants=tuple(args.variants)) for case in cases]
    return cases


def _parser() -> Parser:
    parser = Parser(
        prog="python -m parity.speed",
        description="Times JAX and its PyTorch twin on the same weights and batches: training step, inference and "
        "streaming step, eager and compiled, from the quick config to the paper's sizes. Each runs in its own process; "
        "they take turns, after their results have been seen to agree. Writes DEVICE.json and DEVICE.md.",
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
    parser.add_argument(
        "--only", metavar="PATTERN", default="", help="only cases whose name has this in it; * is anything"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases and measure nothing")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, metavar="VARIANT", help=f"of {', '.join(VARIANTS)} (all)"
    )
    parser.add_argument(
        "--first-call", type=positive_int, default=300, metavar="SECONDS",
        help="give a variant up whose first three calls, or a turn of timed ones, take longer, and say so (300)",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help=f"folder of the results ({SCRATCH})")
    parser.add_argument("--resume", action="store_true", help="keep the cases that are in --out, measure the others")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the page of the JSON in --out")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="also put the short table between its markers")
    parser.add_argument("--json", action="store_true", help="print the JSON in place of the page")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command; see `--help` for its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    cases = select(args)
    if not cases:
        examples = ", ".join(case.name for case in all_cases()[:2])
        return fail(parser, f"--only {args.only} fits no case; names are such as {examples}; --list prints them")
    if args.list:
        print("\n".join(case.name for case in cases))
        return 0
    path = (args.out or SCRATCH) / f"{args.device}.json"
    if problem := None if args.report else missing_device(args.device):
        return fail(parser, problem)
    try:
        if args.report:
            return _report(path, load(path), args)
        return _measure(parser, cases, path, args)
    except ValueError as error:
        return fail(parser, error)
    except BrokenPipeError:
        raise  # no one reads what is printed
    except OSError as error:
        return fail(parser, f"{error.filename}: {error.strerror}")


def _measure(parser: Parser, cases: list[Case], path: Path, args: argparse.Namespace) -> int:
    """Measure the cases, save each with what is said of the run, and write the report."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # of this process, which computes nothing
    here: Values = {**provenance(), "torch": version("torch"), "load_at_start": os.getloadavg()[0]}
    if here["load_at_start"] > BUSY:
        print(f"the machine is busy (load {here['load_at_start']:.1f}): times mean little", file=sys.stderr)
    values: Values = {"cases": []}
    # What a resumed result says of machine and versions must hold for this run too.
    if args.resume and path.exists():
        values = load(path)
        for name in here.keys() - {*OF_A_RUN, "device", "backend"}:  # device and backend are the workers' to say
            if values.get(name) != here[name]:
                raise ValueError(f"{path} cannot be resumed: its {name} is {values.get(name)!r}, not {here[name]!r}")
    elif args.out and path.exists():
        raise ValueError(f"{path} is there already: --resume adds to it; move it away to measure anew")
    about = {name: here.pop(name) for name in OF_A_RUN}
    values |= here
    done = {case["name"] for case in values["cases"]}
    cases = [case for case in cases if case.name not in done]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        failed = _run(cases, values, path, args, about)
    except KeyboardInterrupt:
        if not values["cases"]:
            return fail(parser, "interrupted before the first case was measured", 130)
        _report(path, values, args)
        measured = f"{len(values['cases'])} cases measured"
        return fail(parser, f"interrupted; {measured}; --resume goes on from {path}", 130)
    _report(path, values, args)
    if failed:
        return fail(parser, f"{failed} measurements failed: {path.with_suffix('.md')} says which and why", 1)
    return 0


def _run(cases: list[Case], values: Values, path: Path, args: argparse.Namespace, about: Values) -> int:
    """Measure the cases and return how many cells failed but for lack of time."""
    failed = 0
    with show_progress() as progress:
        progress.plan(len(cases))
        for case in cases:
            progress.step(case.name)
            result, said = measure(case, args.device, Limits(args.first_call), progress.say)
            values |= said | {"backend": args.device}
            values["cases"].append({**result, "run": about})
            write_json(path, values)
            print(one_line(result), file=sys.stderr)
            failed += "refused" in result
            failed += sum("failed" in cell and not cell["timeout"] for cell in result["variants"].values())
    return failed


def _report(path: Path, values: Values, args: argparse.Namespace) -> int:
    """Write the page, and the short table where it is asked for."""
    files = [path, path.with_suffix(".md")]
    files[1].write_text(markdown(values), encoding="utf-8")
    print(json.dumps(values) if args.json else markdown(values))
    if args.readme:
        try:
            text = put_block(args.readme.read_text(encoding="utf-8"), "speed", readme_table(values))
        except ValueError as error:
            raise ValueError(f"{args.readme}: {error}") from None
        args.readme.write_text(text, encoding="utf-8")
        files.append(args.readme)
    print(f"written: {', '.join(map(str, files))}", file=sys.stderr)
    return 0
