"""What each part of the multiplier is worth: the same training with one thing changed at a time, several seeds each."""

import argparse
import re
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ttm_jax.cli import Parser, clock, fail, positive_int
from ttm_jax.files import FileError, read_json, write_json
from ttm_jax.measure.compare import summarize_run
from ttm_jax.measure.report import markdown_table, mean_and_range
from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.task import make_dataset
from ttm_jax.plotting import pyplot
from ttm_jax.tasks import config_from_dict, load_config
from ttm_jax.training.config import ConfigError, config_to_dict
from ttm_jax.training.run_folder import RunFolder

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
    "a step for each product": ("--model.schedule", "product"),
    "a step for each product, no memory": ("--model.schedule", "product", "--model.write", "none"),
    "Mixer": ("--model.processing", "mixer"),
    "MLP": ("--model.processing", "mlp"),
    "plain Transformer": ("--model.kind", "transformer"),
    "plain Transformer of 4 blocks": ("--model.kind", "transformer", "--model.num-layers", "4"),
}


@dataclass(frozen=True)
class Run:
    """The training of one row with one seed, in a folder of its own below `runs`."""

    name: str
    seed: int
    runs: Path

    @property
    def path(self) -> Path:
        """Return its run folder."""
        return self.runs / f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower())}-{self.seed}"

    @property
    def log(self) -> Path:
        """Return the file of what it has printed."""
        return self.path.with_suffix(".log")

    def command(self) -> list[str]:
        """Return what starts it anew, after `python`."""
        flags = *ROWS[self.name], "--train.seed", str(self.seed)
        return ["-m", "ttm_jax.train", "--config", CONFIG, "--workdir", str(self.path), *flags]

    def next_command(self) -> list[str]:
        """Return what starts it, or goes on where it was begun; on one device, however many cores there are."""
        begun = (self.path / "config.toml").exists()
        return [*self.command(), "--devices", "1", *(["--resume"] if begun else [])]

    def is_finished(self) -> bool:
        """Say whether it has made its last evaluation."""
        try:
            train = load_config(self.path / "config.toml").train
            steps = [record["step"] for record in RunFolder(self.path).records() if record["kind"] == "eval"]
        except (ConfigError, OSError):
            return False
        return bool(steps) and steps[-1] >= train.max_epochs * train.steps_per_epoch

    def summary(self) -> dict[str, Any]:
        """Sum up what came of it, as plain values."""
        found = summarize_run(self.path, self.path)
        return {
            "name": self.name,
            "seed": self.seed,
            "command": " ".join(["python", *self.command()]),
            "parameters": count_parameters(load_config(self.path / "config.toml")),
            **{key: found[key] for key in ("steps", "examples", "seconds", "exact_match", "provenance")},
        }

    def train(self) -> "Run":
        """Train it to its end, or raise TrainingFailed; what it prints is added to its log."""
        self.runs.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as output:
            command = [sys.executable, *self.next_command()]
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        if code or not self.is_finished():
            raise TrainingFailed(f"{self.name}, seed {self.seed}: ended with exit status {code}: see {self.log}")
        return self


class TrainingFailed(Exception):
    """A run ended with an error; the message is one line."""


def count_parameters(config: Config) -> int:
    """Count the numbers in the parameters of a config's model."""
    import jax  # here alone: training runs in other processes

    from ttm_jax.multiplication.objective import create_state

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: create_state(config).params)))


def trained_lengths(config: Config) -> list[str]:
    """List the operand lengths that a run of this config is trained on at its last stage."""
    stage = config.curriculum.last_stage
    return list(map(str, make_dataset(config, 1, stage).lengths(stage)))


def load_runs(path: Path) -> list[dict[str, Any]]:
    """Read the finished runs of earlier calls; raise FileError where the file is of another command or budget."""
    if not path.exists():
        return []
    values, runs = read_json(path), []
    try:
        runs = [run for run in values["runs"] if {"name", "seed", "exact_match"} <= run.keys()]
        same = config_from_dict(values["budget"]) == budget()  # keys that it lacks count by their defaults
    except (KeyError, TypeError):
        raise FileError(f"{path}: not a result of this command; move it away") from None
    except ConfigError:
        same = False
    if not same:
        raise FileError(f"{path}: made with another configs/multiplication/{CONFIG}.toml; move it away to begin anew")
    return runs


def budget() -> Config:
    """Load the config that all runs share."""
    return load_config(CONFIG)


def rows_of(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Return the runs of each row that has any, in order of their seeds."""
    found = {name: sorted((run for run in runs if run["name"] == name), key=lambda run: run["seed"]) for name in ROWS}
    return {name: runs for name, runs in found.items() if runs}


def shares(runs: Sequence[dict[str, Any]], length: str) -> list[float]:
    """Return the percentage of the pairs of a length that each run answers right."""
    counts = [run["exact_match"][length] for run in runs]
    return [100 * count["correct"] / count["total"] for count in counts]


def markdown(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Write the table of mean over the seeds and range, a row a change."""
    lengths = list(next(iter(rows.values()))[0]["exact_match"])
    table = []
    for name, runs in rows.items():
        cells = [mean_and_range(shares(runs, length)) for length in lengths]
        table.append([name, f"{runs[0]['parameters']:,}", str(len(runs)), *cells])
    return markdown_table(["changed", "parameters", "seeds", *(f"{length}, %" for length in lengths)], table) + "\n"


def document(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Write the page: the table, with what a stranger has to know."""
    return f"""# What each part is worth

Held-out exact match in %, mean and range over the seeds, with one thing changed at a time. The budget is
[{CONFIG}.toml](../configs/multiplication/{CONFIG}.toml): short, so that the speed of learning is compared. Written by
`python -m ttm_jax.ablations`; [ablations.json](ablations.json) has commits, versions, machines and commands.

![exact match of each seed, and their mean](ablations.png)

{markdown(rows)}"""


def draw(rows: dict[str, list[dict[str, Any]]], length: str, path: Path) -> None:
    """Draw a dot a seed and a bar for their mean, a line a row."""
    plt = pyplot()
    found = {name: shares(runs, length) for name, runs in rows.items()}
    names = sorted(found, key=lambda name: statistics.mean(found[name]))
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.35 * len(names)), layout="constrained")
    for at, name in enumerate(names):
        color = "C1" if name == REFERENCE else "C0"
        axis.plot([statistics.mean(found[name])], [at], "|", color=color, markersize=14, markeredgewidth=2)
        axis.plot(found[name], [at] * len(found[name]), "o", color=color, alpha=0.5)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlim=(-2, 102), xlabel=f"held-out exact match on {length}, %: each seed, and their mean")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m ttm_jax.ablations",
        description="Trains the multiplier with one part changed at a time, several seeds each, and compares held-out "
        "exact match. What is finished is kept in ablations.json and not trained again; what was begun goes on. Writes "
        "ablations.json, .md and .png.",
        epilog="examples:\n"
        "  python -m ttm_jax.ablations --jobs 2\n"
        "  python -m ttm_jax.ablations --only 'no memory' --seeds 1 --out runs/results\n\n"
        "exit status: 0 done, 1 a training failed, 2 bad input, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", metavar="ROW", default=list(ROWS), help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="runs of each row (3)")
    parser.add_argument("--jobs", type=positive_int, default=1, metavar="N", help="trainings at a time (1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="their folder (runs/ablations)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results (results)")
    parser.add_argument("--length", default="3x2", help="operand lengths that the figure shows (3x2)")
    parser.add_argument("--list", action="store_true", help="print the commands of what is not finished, run none")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `--help` for its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    if unknown := [name for name in args.only if name not in ROWS]:
        return fail(parser, f"--only {unknown[0]!r}: there is no such row; --help lists them")
    if args.length not in (lengths := trained_lengths(budget())):
        return fail(parser, f"--length {args.length}: the runs have {', '.join(lengths)}")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _run(args)
    except (ConfigError, FileError) as error:
        return fail(parser, error)
    except TrainingFailed as error:
        return fail(parser, error, 1)
    except OSError as error:
        return fail(parser, f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        return fail(parser, "interrupted; the same command goes on", 130)


def _run(args: argparse.Namespace) -> int:
    path = args.out / "ablations.json"
    finished = load_runs(path)
    known = {(run["name"], run["seed"]) for run in finished}
    asked = [Run(name, seed, args.runs) for seed in range(args.seeds) for name in args.only]  # all rows come early
    new = [run for run in asked if (run.name, run.seed) not in known]
    todo = [run for run in new if not run.is_finished()]
    if args.list:
        for run in todo:
            print(" ".join(["python", *run.next_command()]))
        return 0
    finished += [run.summary() for run in new if run not in todo]
    for done, run in enumerate(train(todo, args.jobs), 1):
        finished.append(run.summary())
        save_runs(path, finished)
        print(f"{done} of {len(todo)}: {run.name}, seed {run.seed}: {clock(finished[-1]['seconds'])}", file=sys.stderr)
    save_runs(path, finished)
    rows = rows_of(finished)
    path.with_suffix(".md").write_text(document(rows), encoding="utf-8")
    draw(rows, args.length, path.with_suffix(".png"))
    print(markdown(rows), end="")
    return 0


def save_runs(path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write the finished runs, row by row."""
    ordered = [run for row in rows_of(runs).values() for run in row]
    write_json(path, {"budget": config_to_dict(budget()), "runs": ordered})


def train(todo: Sequence[Run], jobs: int) -> Iterator[Run]:
    """Train runs, `jobs` at a time, and yield each that has finished; after one that failed none is begun."""
    left = iter(todo)
    with ThreadPoolExecutor(jobs) as pool:
        begun = {pool.submit(run.train) for run in islice(left, jobs)}
        while begun:
            done, begun = wait(begun, return_when=FIRST_COMPLETED)
            yield from [future.result() for future in done]
            begun |= {pool.submit(run.train) for run in islice(left, len(done))}
