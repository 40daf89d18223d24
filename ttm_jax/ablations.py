"""What each part of the multiplier is worth: the same training with one thing changed at a time, several seeds each.

python -m ttm_jax.ablations
"""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ttm_jax.cli import Parser, fail, positive_int
from ttm_jax.compare import summarize_run
from ttm_jax.config import ConfigError, load_config
from ttm_jax.markdown import markdown_table
from ttm_jax.run_folder import RunFolder

CONFIG = "ablation"
REFERENCE = "reference"
# What is changed, as flags of `python -m ttm_jax.train`.
ROWS: dict[str, tuple[str, ...]] = {
    REFERENCE: (),
    "no memory": ("--model.write", "none"),
    "memory 4": ("--model.memory-size", "4"),
    "memory 16": ("--model.memory-size", "16"),
    "memory 96": ("--model.memory-size", "96"),
    "read by queries": ("--model.read", "query"),
    "read by pooling": ("--model.read", "pooling"),
    "write by queries": ("--model.write", "query"),
    "write by pooling": ("--model.write", "pooling"),
    "write by erase and add": ("--model.write", "erase_add"),
    "write by concatenation": ("--model.write", "concat"),
    "Mixer": ("--model.processing", "mixer"),
    "MLP": ("--model.processing", "mlp"),
    "plain Transformer": ("--model.kind", "transformer"),
    "plain Transformer of 4 blocks": ("--model.kind", "transformer", "--model.num-layers", "4"),
}


def command(name: str, seed: int, folder: Path) -> list[str]:
    """What trains one row with one seed, after `python`; its run folder is `run_path(name, seed, folder)`."""
    workdir = run_path(name, seed, folder)
    flags = ["--config", CONFIG, "--workdir", str(workdir), *ROWS[name], "--train.seed", str(seed)]
    return ["-m", "ttm_jax.train", *flags, *(["--resume"] if (workdir / "config.toml").exists() else [])]


def run_path(name: str, seed: int, folder: Path) -> Path:
    """The run folder of a row and seed."""
    return folder / f"{name.replace(' ', '-').lower()}-{seed}"


def is_finished(path: Path) -> bool:
    """Whether a run has made its last evaluation."""
    try:
        train = load_config(path / "config.toml").train
        steps = [record["step"] for record in RunFolder(path).records() if record["kind"] == "eval"]
    except (ConfigError, OSError):
        return False
    return bool(steps) and steps[-1] >= train.max_epochs * train.steps_per_epoch


def summarize(names: Sequence[str], seeds: Sequence[int], folder: Path) -> dict[str, Any]:
    """Of each row whose runs are all finished: exact match by operand lengths for each seed, seconds, command."""
    rows = []
    for name in names:
        paths = [run_path(name, seed, folder) for seed in seeds]
        if not all(map(is_finished, paths)):
            continue
        runs = [summarize_run(path, paths[0]) for path in paths]
        rows.append(
            {
                "name": name,
                "command": " ".join(["python", *command(name, seeds[0], folder)]).removesuffix(" --resume"),
                "steps": runs[0]["steps"],
                "examples": runs[0]["examples"],
                "seconds": [run["seconds"] for run in runs],
                "exact_match": {
                    length: [run["exact_match"][length] for run in runs] for length in runs[0]["exact_match"]
                },
                "provenance": [run["provenance"] for run in runs],
            }
        )
    return {"config": CONFIG, "seeds": list(seeds), "rows": rows}


def shares(row: dict[str, Any], length: str) -> list[float]:
    """Percent of the pairs of a length that are answered right, of each seed."""
    return [100 * counts["correct"] / counts["total"] for counts in row["exact_match"][length]]


def markdown(result: dict[str, Any]) -> str:
    """Mean over the seeds and range, a row a change."""
    rows = result["rows"]
    if not rows:
        return "Nothing is finished yet.\n"
    lengths = list(rows[0]["exact_match"])
    table = []
    for row in rows:
        found = [shares(row, length) for length in lengths]
        table.append([row["name"], *(f"{statistics.mean(x):.1f} ({min(x):.1f} - {max(x):.1f})" for x in found)])
    return markdown_table(["changed", *(f"{length}, %" for length in lengths)], table) + "\n"


def draw(result: dict[str, Any], length: str, path: Path) -> None:
    """A dot a seed and a bar for their mean, a line a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = sorted(result["rows"], key=lambda row: statistics.mean(shares(row, length)))
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.35 * len(rows)), layout="constrained")
    for at, row in enumerate(rows):
        found = shares(row, length)
        color = "C1" if row["name"] == REFERENCE else "C0"
        axis.plot([statistics.mean(found)], [at], "|", color=color, markersize=14, markeredgewidth=2)
        axis.plot(found, [at] * len(found), "o", color=color, alpha=0.5)
    axis.set_yticks(range(len(rows)), [row["name"] for row in rows])
    axis.set(xlim=(-2, 102), xlabel=f"held-out exact match on {length}, %: each seed, and their mean")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ttm_jax.ablations",
        description="Trains the multiplier with one part changed at a time, several seeds each, and compares held-out "
        "exact match. What is finished is kept: the command goes on where it was stopped. Writes ablations.json, .md "
        "and .png.",
        epilog="example: python -m ttm_jax.ablations --only 'no memory' --seeds 1\n\n"
        "exit status: 0 done, 1 a training failed, 2 bad input, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="runs of each row (3)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="their folder (runs/ablations)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results (results)")
    parser.add_argument("--length", default="3x2", help="operand lengths that the figure shows (3x2)")
    parser.add_argument("--list", action="store_true", help="print the commands of what is not finished, run none")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see `--help` for its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    names = args.only or list(ROWS)
    if unknown := [name for name in names if name not in ROWS]:
        return fail(parser, f"--only {unknown[0]!r}: there is no such row; --help lists them")
    seeds = range(args.seeds)
    todo = [  # all rows with the first seed, then with the next: the table is of use early
        command(name, seed, args.runs)
        for seed in seeds
        for name in names
        if not is_finished(run_path(name, seed, args.runs))
    ]
    for number, arguments in enumerate(todo, 1):
        line = " ".join(["python", *arguments])
        if args.list:
            print(line)
            continue
        print(f"{number} of {len(todo)}: {line}", file=sys.stderr)
        try:
            code = subprocess.run([sys.executable, *arguments]).returncode
        except KeyboardInterrupt:
            return fail(parser, "interrupted; the same command goes on", 130)
        if code:
            return fail(parser, f"{line}: ended with exit status {code}", 1)
    if args.list:
        return 0
    result = summarize(names, seeds, args.runs)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "ablations.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (args.out / "ablations.md").write_text(markdown(result), encoding="utf-8")
    draw(result, args.length, args.out / "ablations.png")
    print(markdown(result), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
