"""Measurements of the machine, written to `results/` with where they come from.

python -m ttm_jax.benchmark remat
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.table import Table

from ttm_jax.cli import Parser, fail, positive_int
from ttm_jax.machine import DEFAULT_REMAT, REMAT_POLICIES, TokenTuringMachine
from ttm_jax.run_folder import provenance


def time_interleaved(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, the functions taking turns (A B C A B C ...), each waited for, after one warm-up."""
    for function in functions.values():
        jax.block_until_ready(function())
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function())
            seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles, in milliseconds."""
    low, median, high = (1e3 * q for q in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median_ms": median, "quartile_1_ms": low, "quartile_3_ms": high}


def measure_remat(batch_size: int = 16, num_steps: int = 32, repeats: int = 15) -> list[dict[str, Any]]:
    """Compile time, step time and temporary memory of the machine's gradient by rematerialisation policy.

    Width 128, M=96, R=16, N=16, 4 layers, float32.
    """
    tokens_BxTxNxD = jax.random.normal(jax.random.key(0), (batch_size, num_steps, 16, 128))
    rows, functions = [], {}
    for remat in (False, *REMAT_POLICIES):
        machine = TokenTuringMachine(remat=remat)
        variables = jax.jit(machine.init)(jax.random.key(1), tokens_BxTxNxD[:, :1])

        def loss(variables, tokens, machine=machine):
            results: Any = machine.apply(variables, tokens)
            return sum(jnp.sum(result**2) for result in results)

        start = time.perf_counter()
        compiled = jax.jit(jax.grad(loss)).lower(variables, tokens_BxTxNxD).compile()
        seconds = time.perf_counter() - start
        memory = compiled.memory_analysis()
        temporary_mb = None if memory is None else memory.temp_size_in_bytes / 1e6
        name = "none" if remat is False else remat
        rows.append({"policy": name, "compile_s": seconds, "temporary_mb": temporary_mb})
        functions[name] = lambda compiled=compiled, variables=variables: compiled(variables, tokens_BxTxNxD)
    timings = time_interleaved(functions, repeats)
    return [{**row, **spread(timings[row["policy"]])} for row in rows]


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m ttm_jax.benchmark",
        description="Measures the machine on this device.",
        epilog="example: python -m ttm_jax.benchmark remat --repeats 15",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("what", choices=["remat"], help="remat: rematerialisation policies of the scanned step")
    parser.add_argument("--repeats", type=positive_int, default=15, help="of each measurement, interleaved")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the JSON result")
    args = parser.parse_args(argv)

    rows = measure_remat(repeats=max(args.repeats, 2))
    table = Table(title=f"gradient over 32 steps, batch 16; the default is {DEFAULT_REMAT!r}", title_justify="left")
    for heading in ("policy", "compile, s", "step, ms", "quartiles", "temporary, MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        quartiles = f"{row['quartile_1_ms']:.0f}-{row['quartile_3_ms']:.0f}"
        cells = (f"{row['compile_s']:.1f}", f"{row['median_ms']:.0f}", quartiles, f"{row['temporary_mb']:.0f}")
        table.add_row(row["policy"], *cells)
    Console().print(table)
    path = args.out / f"{args.what}.json"
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**provenance(), "rows": rows}, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        return fail(parser, f"--out {args.out}: {error.strerror}")
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
