"""Measures this machine: what it is, what it can do, and what the Token Turing Machine makes of it."""

import argparse
import json
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

from rich.console import Console

from ttm_jax.cli import Parser, fail, positive_int
from ttm_jax.hardware.allocator import keep_freed_memory
from ttm_jax.hardware.detect import UNKNOWN, devices_present
from ttm_jax.measure.figures import draw_history, history_figure
from ttm_jax.measure.page import caches, known, regenerate
from ttm_jax.measure.progress import show_progress
from ttm_jax.measure.report import scaled
from ttm_jax.measure.results import (
    FLAGS,
    SECTIONS,
    ResultError,
    check_folder,
    check_results,
    describe,
    load_results,
    result_path,
    save_section,
    section_of,
)
from ttm_jax.measure.unrolled import STEPS, cases_of
from ttm_jax.training.mesh import divide_processor

OUT = Path("results/hardware")
PAGE = Path("hardware_choice.md")


def make_parser() -> Parser:
    """The command line: one thing is measured a run, on every device present."""
    parser = Parser(
        prog="python -m ttm_jax.benchmark",
        description="Measures the operations of the Token Turing Machine on each device present,\n"
        "or one of the things below. JAX_PLATFORMS=cpu leaves accelerators out.",
        epilog="example: python -m ttm_jax.benchmark --history --out runs/hardware",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group()
    for key, text in (
        ("training", "the training step of the shipped configs: alone, with its data, by operation"),
        ("batch_sizes", "training throughput and memory against the batch size"),
        ("history", "a step against the length of the history, beside a causal Transformer"),
        ("unrolled", "the scan against the steps unrolled in Python"),
        ("remat", "what a rematerialised step keeps"),
    ):
        what.add_argument(FLAGS[key], dest="key", action="store_const", const=key, help=text)
    what.add_argument(
        "--page",
        type=Path,
        nargs="?",
        const=PAGE,
        metavar="FILE",
        help=f"measure nothing; write the results of --out into this page, {PAGE} where none is named",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="DIR",
        help="with --training: keep the traces, for Perfetto and TensorBoard, in a folder a device and config",
    )
    parser.add_argument(
        "--steps",
        type=positive_int,
        nargs="+",
        metavar="T",
        help=f"with --against-unrolled: numbers of steps ({' '.join(map(str, STEPS))}, most of the time in the last); "
        "what was measured with others is replaced",
    )
    parser.add_argument("--quick", action="store_true", help="under a minute; written only where --out is given")
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of tables")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help=f"of the results, a file a device (default: {OUT})")
    parser.set_defaults(key="operations")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = make_parser()
    args = parser.parse_args(argv)
    if args.profile and args.key != "training":
        parser.error("--profile keeps the traces of --training, which is not asked for")
    if args.steps and args.key != "unrolled":
        parser.error("--steps is of --against-unrolled, which is not asked for")
    if args.steps and args.quick:
        parser.error("--steps: a quick run has steps of its own; leave one of the two out")
    try:
        if args.page:
            return _write_page(args)
        with _interruptible(parser):
            return _measure(args)
    except ResultError as error:
        return fail(parser, error)


@contextmanager
def _interruptible(parser: Parser) -> Generator[None, None, None]:
    """Ctrl-C ends the process at once, in the midst of a compilation too, which may take minutes and hears nothing."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        if os.read(reader, 1):
            Console(stderr=True).show_cursor()
            os._exit(fail(parser, "stopped; what was not finished is not written", 130))

    handler = signal.signal(signal.SIGINT, lambda *_: None)
    wakeup = signal.set_wakeup_fd(writer)  # the signal's number arrives there whatever the main thread does
    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGINT, handler)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _measure(args: argparse.Namespace) -> int:
    """Measures one thing on each device, shows it, and writes it unless the run is quick and names no folder."""
    folder = args.out or (None if args.quick else OUT)
    keep_freed_memory()  # as training does
    divide_processor()
    devices = devices_present()
    heads = [describe(device) for device in devices]
    if folder:
        check_folder("--out", folder)
        check_results(folder, heads)
    if args.profile:
        check_folder("--profile", args.profile)
    console = Console()
    shown: dict[str, Any] = {}
    for device, head in zip(devices, heads, strict=True):
        if not args.json:
            console.print(_headline(head), highlight=False, soft_wrap=True)
        module = SECTIONS[args.key]
        with show_progress() as progress:
            options: dict[str, Any] = {"traces": args.profile / device.platform} if args.profile else {}
            if args.steps:
                options["cases"] = cases_of(args.steps)
            section = section_of(device, args.quick, module.measure(device, args.quick, progress, **options))
        shown[head["name"]] = {**head, args.key: section}
        if not args.json:
            for table in module.tables(section):
                console.print(table.to_rich())
            for note in module.notes(section):
                console.print(note, highlight=False)
        if folder:
            path = save_section(folder, head, args.key, section)
            _print_written(console, args, path, *_draw(shown[head["name"]], path))
        if args.profile:
            traces = (args.profile / device.platform).glob("**/perfetto_trace.json.gz")
            _print_written(console, args, *sorted(traces))
    if args.json:
        print(json.dumps(shown))
    return 0


def _print_written(console: Console, args: argparse.Namespace, *paths: Path) -> None:
    if not args.json:
        console.print(*(f"written: {path}" for path in paths), sep="\n", highlight=False, soft_wrap=True)


def _write_page(args: argparse.Namespace) -> int:
    """Draws the figures and writes the pages, both from the result files alone."""
    folder = args.out or OUT
    results = load_results(folder)
    changed = regenerate(args.page, folder, results)
    for result in results:
        _draw(result, result_path(folder, result["name"]))
    for path in changed:
        print(f"written: {path}")
    if not changed:
        print(f"unchanged: {args.page}")
    return 0


def _draw(result: dict[str, Any], path: Path) -> list[Path]:
    if "history" not in result:
        return []
    draw_history(result["history"], history_figure(path))
    return [history_figure(path)]


def _headline(head: dict[str, Any]) -> str:
    """The device and its host in a few lines."""
    machine, device = head["machine"], head["device"]
    cores, cpus, usable = (known(machine[name]) for name in ("cores", "cpus", "usable_cpus"))
    memory = machine["memory_bytes"]
    lines = [
        f"device: {device['count']} x {device['kind']} ({device['platform']})",
        f"processor: {machine['processor']} ({machine['architecture']})",
        f"cores: {cores}, hardware threads: {cpus}, usable: {usable}",
        f"caches: {caches(machine['caches'])}",
        f"instruction sets: {', '.join(machine['instruction_sets']) or UNKNOWN}",
        f"memory: {UNKNOWN if memory is None else scaled(memory, 'B')}",
    ]
    return "\n".join(lines)
