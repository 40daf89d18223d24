"""Measurements of this machine: what it is, what it can do, and what the Token Turing Machine makes of it."""

import argparse
import json
import signal
from pathlib import Path
from typing import Any

from rich.console import Console

from ttm_jax.cli import Parser, fail, positive_int, show_progress
from ttm_jax.files import FileError
from ttm_jax.hardware.allocator import keep_freed_memory
from ttm_jax.hardware.detect import devices_present
from ttm_jax.measure import history, page, results, text
from ttm_jax.measure.unrolled import STEPS, cases_of
from ttm_jax.training.config import ConfigError
from ttm_jax.training.mesh import divide_processor

OUT = Path("results/hardware")
PAGE = Path("hardware_choice.md")


def make_parser() -> Parser:
    """Make the command line: one thing is measured a run, on every device present."""
    parser = Parser(
        prog="python -m ttm_jax.benchmark",
        description="Measures the operations of the Token Turing Machine on each device present,\n"
        "or one of the things below. JAX_PLATFORMS=cpu leaves accelerators out.",
        epilog="example: python -m ttm_jax.benchmark --history --out runs/hardware",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    for key, module in results.SECTIONS.items():
        if key == "text":
            about = f"the text models, of these configs ({' '.join(text.CONFIGS)}) or of those named"
            what.add_argument(text.FLAG, nargs="*", metavar="CONFIG", help=about)
        elif module.FLAG:
            about = str(module.__doc__).partition("\n")[0]
            what.add_argument(module.FLAG, dest="key", action="store_const", const=key, help=about)
    what.add_argument(
        "--page", type=Path, nargs="?", const=PAGE, metavar="FILE",
        help=f"measure nothing; write the results of --out into this page, {PAGE} where none is named",
    )  # fmt: skip
    parser.add_argument(
        "--profile", type=Path, metavar="DIR",
        help="with --training: keep the traces, for Perfetto and TensorBoard, in a folder a device and config",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=positive_int, nargs="+", metavar="T",
        help=f"with --against-unrolled: numbers of steps ({' '.join(map(str, STEPS))}, most of the time in the last); "
        "what was measured with others is replaced",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="under a minute; written only where --out is given")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of tables")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"of the results, a file a device (default: {OUT})")
    parser.set_defaults(key="operations")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.text is not None:
        args.key = "text"
    if args.profile and args.key != "training":
        parser.error("--profile keeps the traces of --training, which is not asked for")
    if args.steps and args.key != "unrolled":
        parser.error("--steps is of --against-unrolled, which is not asked for")
    if args.steps and args.quick:
        parser.error("--steps: a quick run has steps of its own; leave one of the two out")
    # Ctrl-C ends the process at once, in the midst of a compilation too, which may take minutes and hears nothing.
    handler = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        return _write_page(args) if args.page else _measure(args)
    except (FileError, ConfigError) as error:
        return fail(parser, error)
    finally:
        signal.signal(signal.SIGINT, handler)


def _measure(args: argparse.Namespace) -> int:
    """Measure one thing on each device, show it, and write it unless the run is quick and names no folder."""
    folder = args.out or (None if args.quick else OUT)
    keep_freed_memory()  # as training does
    divide_processor()
    found = [(device, results.describe(device)) for device in devices_present()]
    # Folders that cannot take the results are refused before anything is measured.
    if folder:
        results.check_folder("--out", folder)
        for _, head in found:
            results.check_result(folder, head)
    if args.profile:
        results.check_folder("--profile", args.profile)
    console, module = Console(quiet=args.json), results.SECTIONS[args.key]
    shown: dict[str, Any] = {}
    for device, head in found:
        for fact in page.machine(head).rows:
            console.print(": ".join(fact), highlight=False, soft_wrap=True)
        options: dict[str, Any] = dict(module.QUICK) if args.quick else {}
        if args.profile:
            options["traces"] = args.profile / device.platform
        if args.text:
            options["configs"] = args.text
        if args.steps:
            options["cases"] = cases_of(args.steps)
        with show_progress() as progress:
            section = results.section_of(device, args.quick, module.measure(device, progress, **options))
        shown[head["name"]] = {**head, args.key: section}
        for table in module.tables(section):
            console.print(table.to_rich())
        written = []
        if folder:
            written.append(results.save_section(folder, head, args.key, section))
            if args.key == "history":
                written.append(history.draw(section, page.figure_path(folder, head["name"])))
        if args.profile:
            written += sorted((args.profile / device.platform).glob("**/perfetto_trace.json.gz"))
        for path in written:
            console.print(f"written: {path}", highlight=False, soft_wrap=True)
    if args.json:
        print(json.dumps(shown))
    return 0


def _write_page(args: argparse.Namespace) -> int:
    """Draw the figures and write the pages, both from the result files alone."""
    folder = args.out or OUT
    devices = results.load_results(folder)
    changed = page.regenerate(args.page, folder, devices)
    for device in devices:
        if "history" in device:
            history.draw(device["history"], page.figure_path(folder, device["name"]))
    for path in changed:
        print(f"written: {path}")
    if not changed:
        print(f"unchanged: {args.page}")
    return 0
