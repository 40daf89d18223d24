"""Runs side by side: what differs in their configs, how long they took, what they reached."""

import json
from pathlib import Path
from typing import Any

from ttm_jax.cli import Parser, clock, fail
from ttm_jax.measure.report import markdown_table
from ttm_jax.multiplication.task import MARKS
from ttm_jax.tasks import load_config
from ttm_jax.training.config import ConfigError, changed_keys, flat_values
from ttm_jax.training.run_folder import RunFolder


def summarize_run(path: Path, reference: Path) -> dict[str, Any]:
    """Sum up a run as plain values: the keys in which its config differs from the reference's, its last evaluation.

    "marks_met" maps each mark's length to the seconds at the first evaluation above it; None where there was none.
    Raises ConfigError where a folder has no readable config or no evaluation.
    """
    config = load_config(path / "config.toml")
    values = flat_values(config)
    changed = changed_keys(load_config(reference / "config.toml"), config)
    evaluations = [record for record in RunFolder(path).records() if record["kind"] == "eval"]
    if not evaluations:
        raise ConfigError(f"{path} has no evaluation in metrics.jsonl yet")
    last = evaluations[-1]
    return {
        "run": path.name,
        "changed": {key: values[key] for key in changed},
        "steps": last["step"],
        "examples": last["examples"],
        "seconds": last["seconds"],
        "marks_met": {
            name: next((r["seconds"] for r in evaluations if _share(r, name) > mark), None)
            for name, mark in MARKS.items()
        },
        "exact_match": last["exact_match"],
        "provenance": json.loads((path / "versions.json").read_text(encoding="utf-8")),
    }


def markdown(rows: list[dict[str, Any]]) -> str:
    """Write the summaries as a table."""
    lengths = list(dict.fromkeys(name for row in rows for name in row["exact_match"]))
    headings = ["run", "changed", "examples", "time", "all marks met", *(f"{name}, %" for name in lengths)]
    table = []
    for row in rows:
        met = list(row["marks_met"].values())
        cells = [
            row["run"],
            ", ".join(f"{key} = {json.dumps(value)}" for key, value in row["changed"].items()) or "-",
            f"{row['examples']:,}",
            clock(row["seconds"]),
            "no" if None in met else clock(max(met)),
            *(f"{100 * _share(row, name):.1f}" if name in row["exact_match"] else "-" for name in lengths),
        ]
        table.append(cells)
    return markdown_table(headings, table)


def main(argv: list[str] | None = None) -> int:
    parser = Parser(
        prog="python -m ttm_jax.compare",
        description="Compares runs by their last evaluation; configs are compared with that of the first run.",
        epilog="example: python -m ttm_jax.compare runs/quick runs/adamw --out results/variants.json",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, the reference first")
    parser.add_argument("--out", type=Path, help="also write the rows as JSON to this file")
    args = parser.parse_args(argv)
    try:
        rows = [summarize_run(run, args.runs[0]) for run in args.runs]
        if args.out:
            args.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    except ConfigError as error:
        return fail(parser, error)
    except OSError as error:
        return fail(parser, f"{error.filename}: {error.strerror}")
    print(markdown(rows))
    return 0


def _share(record: dict[str, Any], name: str) -> float:
    counts = record["exact_match"].get(name)
    return counts["correct"] / counts["total"] if counts else 0.0
