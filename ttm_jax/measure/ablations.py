"""What each part of the multiplier is worth: the same training with one thing changed at a time, several seeds each."""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Event
from typing import Any

from ttm_jax.cli import Parser, clock, fail, positive_int
from ttm_jax.measure.compare import summarize_run
from ttm_jax.measure.markdown import markdown_table
from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.problems import MultiplicationDataset
from ttm_jax.tasks import config_from_dict, load_config
from ttm_jax.training.config import ConfigError, config_to_dict, find_config
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
    """The training of one row with one seed."""

    name: str
    seed: int

    def path(self, folder: Path) -> Path:
        """Its run folder."""
        return folder / f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower())}-{self.seed}"

    def log(self, folder: Path) -> Path:
        """What it has printed."""
        return self.path(folder).with_suffix(".log")

    def command(self, folder: Path) -> list[str]:
        """What starts it anew, after `python`."""
        workdir = str(self.path(folder))
        return [
            *("-m", "ttm_jax.train", "--config", CONFIG, "--workdir", workdir),
            *(*ROWS[self.name], "--train.seed", str(self.seed)),
        ]

    def next_command(self, folder: Path) -> list[str]:
        """What starts it, or goes on with it where it was begun; on one device, however many cores a run has."""
        begun = (self.path(folder) / "config.toml").exists()
        return [*self.command(folder), "--devices", "1", *(["--resume"] if begun else [])]

    def is_finished(self, folder: Path) -> bool:
        """Whether it has made its last evaluation."""
        path = self.path(folder)
        try:
            train = load_config(path / "config.toml").train
            steps = [record["step"] for record in RunFolder(path).records() if record["kind"] == "eval"]
        except (ConfigError, OSError):
            return False
        return bool(steps) and steps[-1] >= train.max_epochs * train.steps_per_epoch

    def summary(self, folder: Path) -> dict[str, Any]:
        """What came of it, as plain values."""
        path = self.path(folder)
        found = summarize_run(path, path)
        return {
            "name": self.name,
            "seed": self.seed,
            "command": " ".join(["python", *self.command(folder)]),
            "parameters": count_parameters(load_config(path / "config.toml")),
            **{key: found[key] for key in ("steps", "examples", "seconds", "exact_match", "provenance")},
        }


def count_parameters(config: Config) -> int:
    """Numbers in the parameters of a config's model."""
    import jax  # here alone: training runs in other processes

    from ttm_jax.multiplication.objective import create_state

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(lambda: create_state(config).params)))


def trained_lengths(config: Config) -> list[str]:
    """The operand lengths that a run of this config is trained on at its last stage."""
    data = config.data
    dataset = MultiplicationDataset(1, stages=data.stages, max_digits=data.max_digits)
    return list(map(str, dataset.lengths(config.curriculum.last_stage)))


class Results:
    """`ablations.json`: the finished runs, on one budget, of this and of earlier calls."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.path = folder / "ablations.json"
        self.budget = load_config(find_config(CONFIG))
        self.runs: dict[Run, dict[str, Any]] = {}

    def load(self) -> None:
        """Reads the runs that are there.

        Raises:
            ConfigError: if the file is no result of this command, or of another budget.
            OSError: if it cannot be read.
        """
        if not self.path.exists():
            return
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            budget, runs = values["budget"], {Run(run["name"], run["seed"]): run for run in values["runs"]}
        except (ValueError, KeyError, TypeError):
            raise ConfigError(f"{self.path}: damaged, or not a result of this command; move it away") from None
        if not _is_config(budget, self.budget):
            raise ConfigError(f"{self.path}: made with another configs/{CONFIG}.toml; move it away to begin anew")
        self.runs = runs

    def add(self, run: Run, runs: Path) -> None:
        """Adds a finished run of the folder of runs."""
        self.runs[run] = run.summary(runs)

    def save(self) -> None:
        """Writes the file; a reader never sees half of it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        values = {
            "budget": config_to_dict(self.budget),
            "runs": [self.runs[run] for run in sorted(self.runs, key=_order)],
        }
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def rows(self) -> dict[str, list[dict[str, Any]]]:
        """The runs of each row, in order."""
        found = {name: [self.runs[run] for run in sorted(self.runs, key=_order) if run.name == name] for name in ROWS}
        return {name: runs for name, runs in found.items() if runs}


def _is_config(values: Any, config: Config) -> bool:
    """Whether plain values are this config; keys that they lack, as newer ones, count by their defaults."""
    try:
        return config_from_dict(values) == config
    except ConfigError:
        return False


def _order(run: Run) -> tuple[int, int]:
    return list(ROWS).index(run.name), run.seed


def shares(runs: Sequence[dict[str, Any]], length: str) -> list[float]:
    """Percent of the pairs of a length that are answered right, of each run."""
    counts = [run["exact_match"][length] for run in runs]
    return [100 * count["correct"] / count["total"] for count in counts]


def markdown(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Mean over the seeds and range, a row a change."""
    lengths = list(next(iter(rows.values()))[0]["exact_match"])
    table = []
    for name, runs in rows.items():
        found = [shares(runs, length) for length in lengths]
        ranges = [f" ({min(x):.1f} - {max(x):.1f})" if len(x) > 1 else "" for x in found]
        cells = [f"{statistics.mean(x):.1f}{extent}" for x, extent in zip(found, ranges, strict=True)]
        table.append([name, f"{runs[0]['parameters']:,}", str(len(runs)), *cells])
    return markdown_table(["changed", "parameters", "seeds", *(f"{length}, %" for length in lengths)], table) + "\n"


def document(rows: dict[str, list[dict[str, Any]]]) -> str:
    """The table with what a stranger has to know, as a page."""
    return f"""# What each part is worth

Held-out exact match in %, mean and range over the seeds, with one thing changed at a time. The budget is
[configs/{CONFIG}.toml](../configs/{CONFIG}.toml): short, so that the speed of learning is compared. Written by
`python -m ttm_jax.ablations`; [ablations.json](ablations.json) has commits, versions, machines and commands.

![exact match of each seed, and their mean](ablations.png)

{markdown(rows)}"""


def draw(rows: dict[str, list[dict[str, Any]]], length: str, path: Path) -> None:
    """A dot a seed and a bar for their mean, a line a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

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


class TrainingFailed(Exception):
    """A run ended with an error; the message is one line."""


def train(todo: Sequence[Run], folder: Path, jobs: int, results: Results) -> None:
    """Trains runs, `jobs` at a time, each on its share of the processor's cores; each that finishes is saved.

    What a run prints goes into a file beside its folder.

    Raises:
        TrainingFailed: if one does not end well; those that were begun are seen to their end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shares_of_cores: SimpleQueue[set[int]] = SimpleQueue()
    for cores in split_cores(jobs):
        shares_of_cores.put(cores)

    stop = Event()

    def train_one(run: Run) -> bool:
        """Whether it was begun: none is after one that failed."""
        if stop.is_set():
            return False
        cores = shares_of_cores.get()
        try:
            with _on(cores), run.log(folder).open("a", encoding="utf-8") as output:
                command = [sys.executable, *run.next_command(folder)]
                code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
            if code or not run.is_finished(folder):
                how = f"ended with exit status {code}: see {run.log(folder)}"
                raise TrainingFailed(f"{run.name}, seed {run.seed}: {how}")
            return True
        except BaseException:
            stop.set()
            raise
        finally:
            shares_of_cores.put(cores)

    with ThreadPoolExecutor(jobs) as pool:
        runs = {pool.submit(train_one, run): run for run in todo}
        try:
            for done, future in enumerate(as_completed(runs), 1):
                run = runs[future]
                if not future.result():
                    continue
                results.add(run, folder)
                results.save()
                took = clock(results.runs[run]["seconds"])
                print(f"{done} of {len(todo)}: {run.name}, seed {run.seed}: {took}", file=sys.stderr)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)  # those that were begun have had the same Ctrl-C, or run to their end
            raise


def split_cores(jobs: int) -> list[set[int]]:
    """The cores that this process may use, in so many shares; empty sets where they are not to be had or too few."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    return [set(usable[job::jobs]) if len(usable) >= jobs > 1 else set() for job in range(jobs)]


@contextmanager
def _on(cores: set[int]):
    """What this thread starts runs on these cores; anywhere where there are none."""
    if cores:
        os.sched_setaffinity(0, cores)  # of the thread; its children inherit it
    yield


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
    parser.add_argument("--only", nargs="+", metavar="ROW", help=f"of: {', '.join(ROWS)}")
    parser.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="runs of each row (3)")
    parser.add_argument(
        "--jobs", type=positive_int, default=1, metavar="N",
        help="trainings at a time, each on its share of the cores (1); one a core gives the most examples",
    )  # fmt: skip
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
    try:
        return _run(parser, args, names)
    except ConfigError as error:
        return fail(parser, error)
    except TrainingFailed as error:
        return fail(parser, error, 1)
    except OSError as error:
        return fail(parser, f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        return fail(parser, "interrupted; the same command goes on", 130)


def _run(parser: Parser, args: argparse.Namespace, names: Sequence[str]) -> int:
    if args.length not in (lengths := trained_lengths(load_config(find_config(CONFIG)))):
        return fail(parser, f"--length {args.length}: the runs have {', '.join(lengths)}")
    results = Results(args.out)
    results.load()
    asked = [Run(name, seed) for seed in range(args.seeds) for name in names]  # a table of all rows comes early
    for run in asked:
        if run not in results.runs and run.is_finished(args.runs):
            results.add(run, args.runs)
    todo = [run for run in asked if run not in results.runs]
    if args.list:
        for run in todo:
            print(" ".join(["python", *run.next_command(args.runs)]))
        return 0
    if todo:
        train(todo, args.runs, args.jobs, results)
    results.save()
    rows = results.rows()
    (args.out / "ablations.md").write_text(document(rows), encoding="utf-8")
    draw(rows, args.length, args.out / "ablations.png")
    print(markdown(rows), end="")
    return 0
