"""The command `python -m parity`."""

import argparse
import json
import os
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

from parity.needs import missing_device
from ttm_jax.cli import Parser, fail, show_progress


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 if all comparisons are in bounds and all mutations caught, 1 if not, 2 on bad input."""
    parser = _parser()
    options = parser.parse_args(argv)
    if missing := missing_device(options.device):
        return fail(parser, missing)

    import jax
    import torch

    # The twins must not share a GPU: JAX would take most of its memory. JAX's numbers are those of the CPU.
    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(1)  # small arrays: more threads wait for each other

    from parity import cases
    from parity.report import as_json, is_ok, print_report
    from parity.scenic import CaseError
    from ttm_jax.training.run_folder import provenance

    # 1. choose the cases  2. compare  3. tell what was found
    chosen, mutations = (
        [case for case in group if fnmatchcase(case.name, f"*{options.only}*")]
        for group in (cases.CASES, cases.MUTATIONS)
    )
    if not chosen and not mutations:
        groups = ", ".join(dict.fromkeys(case.name.partition("/")[0] for case in (*cases.CASES, *cases.MUTATIONS)))
        return fail(parser, f"--only {options.only}: no case has that in its name; names begin with {groups}")
    start = time.perf_counter()
    try:
        found = _compare(chosen, mutations, options.device)
    except CaseError as error:
        return fail(parser, error)
    seconds = time.perf_counter() - start

    versions = {**provenance(), "torch": torch.__version__}
    if options.json:
        origin = {"device": options.device, "seconds": seconds, "provenance": versions}
        print(json.dumps({**as_json(found), **origin}))
    else:
        where = f"ttm_torch: torch {versions['torch']} on {options.device}; ttm_jax: jax {versions['jax']} on cpu"
        print_report(found, [f"{where}; {seconds:.0f} s"])
    return 0 if is_ok(found) else 1


def _compare(chosen: Sequence[Any], mutations: Sequence[Any], device: str) -> dict[str, Any]:
    """Compute the rows of each case. Mutations change what all threads use, so they run alone, after the others."""
    found = {}
    with show_progress() as progress:
        progress.plan(len(chosen) + len(mutations))
        with _pool() as pool:
            for case, rows in zip(chosen, pool.map(lambda case: case.rows(device), chosen), strict=True):
                progress.step(case.name)
                found[case.name] = rows
        for case in mutations:
            progress.step(case.name)
            found[case.name] = case.rows(device)
    return found


def _parser() -> Parser:
    parser = Parser(
        prog="python -m parity",
        description="Compares ttm_jax and ttm_torch: weights both ways, data, every layer, the machine in every mode, "
        "20 optimiser steps, the original's reference cases; then changes the twin a little, which must be seen.",
        epilog="example: python -m parity --only erase_add\n\n"
        "exit status: 0 all in bounds and all mutations caught, 1 not so, 2 bad input",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where PyTorch runs (JAX: on the CPU)")
    parser.add_argument(
        "--only",
        metavar="PATTERN",
        default="",
        help="cases whose name contains this; * and ? as in file names: machine/query-*, mutation, scenic/unit_TL_",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object in place of the table")
    return parser


@contextmanager
def _pool() -> Generator[ThreadPoolExecutor, None, None]:
    """Open threads: one case is traced while another is compiled. An error or Ctrl-C drops what has not begun."""
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
