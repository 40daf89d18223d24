"""What each part is worth: the same training with one thing changed at a time, several seeds each."""

import argparse
import os
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
from ttm_jax.measure.report import markdown_table
from ttm_jax.measure.studies import REFERENCE, STUDIES, Multiplication, Runs, Study, trained_lengths
from ttm_jax.plotting import pyplot
from ttm_jax.tasks import config_from_dict, load_config, make_objective
from ttm_jax.training.checkpoint_files import CheckpointError
from ttm_jax.training.config import ConfigError, config_to_dict, find_config, override
from ttm_jax.training.run_folder import RunFolder

DEFAULT = "multiplication"  # of the studies


@dataclass(frozen=True)
class Run:
    """The training of one row with one seed, in a folder of its own below `runs`."""

    study: Study
    name: str
    seed: int
    runs: Path

    @property
    def path(self) -> Path:
        """Return its run folder."""
        return self.runs / self.study.name / f"{re.sub(r'[^a-z0-9]+', '-', self.name.lower())}-{self.seed}"

    @property
    def log(self) -> Path:
        """Return the file of what it has printed."""
        return self.path.with_suffix(".log")

    def command(self) -> list[str]:
        """Return what starts it anew, after `python`."""
        flags = *self.study.rows[self.name], "--train.seed", str(self.seed)
        return ["-m", "ttm_jax.train", "--config", self.study.config, "--workdir", str(self.path), *flags]

    def next_command(self) -> list[str]:
        """Return what starts it, or goes on where it was begun; on one device, however many cores there are."""
        begun = (self.path / "config.toml").exists()
        return [*self.command(), "--devices", "1", *(["--resume"] if begun else [])]

    def config(self) -> Any:
        """Return the config that it has."""
        flags = self.study.rows[self.name]
        changed = {flag[2:].replace("-", "_"): value for flag, value in zip(flags[::2], flags[1::2], strict=True)}
        return override(load_config(self.study.config), {**changed, "train.seed": str(self.seed)})

    def is_finished(self) -> bool:
        """Say whether it has made its last evaluation.

        Raises:
            FileError: if its folder holds a run of another config.
        """
        try:
            config, evaluations = load_config(self.path / "config.toml"), self._evaluations()
        except (ConfigError, OSError):
            return False
        if config != self.config():
            raise FileError(f"{self.path}: a run of another config; move it away, or name another folder with --runs")
        steps = config.train.max_epochs * config.train.steps_per_epoch
        return bool(evaluations) and (evaluations[-1]["step"] >= steps or evaluations[-1].get("stop", False))

    def _evaluations(self) -> list[dict[str, Any]]:
        return [record for record in RunFolder(self.path).records() if record["kind"] == "eval"]

    def summary(self) -> dict[str, Any]:
        """Sum up what came of it, as plain values."""
        last = self._evaluations()[-1]
        return {
            "name": self.name,
            "seed": self.seed,
            "command": " ".join(["python", *self.command()]),
            "parameters": count_parameters(self.config()),
            "steps": last["step"],
            "seconds": last["seconds"],
            **self.study.summarize(self.path, last),
            "provenance": read_json(self.path / "versions.json"),
        }

    def train(self) -> "Run":
        """Train it to its end, or raise TrainingFailed; what it prints is added to its log."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("a", encoding="utf-8") as output:
            command = [sys.executable, *self.next_command()]
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        if code or not self.is_finished():
            raise TrainingFailed(f"{self.name}, seed {self.seed}: ended with exit status {code}: see {self.log}")
        return self


class TrainingFailed(Exception):
    """A run ended with an error; the message is one line."""


def count_parameters(config: Any) -> int:
    """Count the numbers in the parameters of a config's model."""
    import jax  # here alone: training runs in other processes

    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(make_objective(config).init, jax.random.key(0))))


def load_runs(study: Study, path: Path) -> list[dict[str, Any]]:
    """Read the finished runs of earlier calls; raise FileError where the file is of another command or budget."""
    if not path.exists():
        return []
    values, runs = read_json(path), []
    try:
        runs = [run for run in values["runs"] if {"name", "seed", "parameters"} <= run.keys()]
        same = config_from_dict(values["budget"]) == load_config(study.config)  # keys that it lacks: their defaults
    except (KeyError, TypeError):
        raise FileError(f"{path}: not a result of this command; move it away") from None
    except ConfigError:
        same = False
    if not same:
        config = os.path.relpath(find_config(study.config))
        raise FileError(f"{path}: made with another {config}; move it away to begin anew")
    return runs


def rows_of(study: Study, runs: Sequence[dict[str, Any]]) -> Runs:
    """Return the runs of each row that has any, in order of their seeds."""
    found = {name: [run for run in runs if run["name"] == name] for name in study.rows}
    return {name: sorted(runs, key=lambda run: run["seed"]) for name, runs in found.items() if runs}


def markdown(study: Study, rows: Runs) -> str:
    """Write the table, a row a change."""
    columns = {
        "changed": [*rows],
        "parameters": [f"{runs[0]['parameters']:,}" for runs in rows.values()],
        "seeds": [str(len(runs)) for runs in rows.values()],
        **study.columns(rows),
    }
    return markdown_table([*columns], [*zip(*columns.values(), strict=True)]) + "\n"


def document(study: Study, rows: Runs) -> str:
    """Write the page: the table, with what a stranger has to know."""
    name = Path(study.results).name
    argument = "" if study.name == DEFAULT else f" {study.name}"
    return f"""# {study.title}

{study.about} Written by
`python -m ttm_jax.ablations{argument}`; [{name}.json]({name}.json) has commits, versions, machines and commands.

![each seed, and their mean]({name}.png)

{markdown(study, rows)}"""


def draw(study: Study, rows: Runs, path: Path) -> None:
    """Draw a dot a seed and a bar for their mean, a line a row."""
    plt = pyplot()
    found = {name: [study.score(run) for run in runs] for name, runs in rows.items()}
    names = sorted(found, key=lambda name: statistics.mean(found[name]))
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.35 * len(names)), layout="constrained")
    for at, name in enumerate(names):
        color = "C1" if name == REFERENCE else "C0"
        axis.plot([statistics.mean(found[name])], [at], "|", color=color, markersize=14, markeredgewidth=2)
        axis.plot(found[name], [at] * len(found[name]), "o", color=color, alpha=0.5)
    axis.set_yticks(range(len(names)), names)
    axis.set(xlim=study.limits, xlabel=f"{study.label}: each seed, and their mean")
    axis.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _parser() -> Parser:
    rows = "\n".join(f"  {name}: {', '.join(study.rows)}" for name, study in STUDIES.items())
    parser = Parser(
        prog="python -m ttm_jax.ablations",
        description="Trains with one part changed at a time, several seeds each, and compares what they reach.\n"
        "What is finished is kept in the results and not trained again; what was begun goes on.\n"
        "Writes a .json, .md and .png.",
        epilog=f"rows:\n{rows}\n\n"
        "examples:\n"
        "  python -m ttm_jax.ablations --jobs 2\n"
        "  python -m ttm_jax.ablations --only 'no memory' --seeds 1 --out runs/results\n"
        "  python -m ttm_jax.ablations text --seeds 1\n\n"
        "exit status: 0 done, 1 a training failed, 2 bad input, 130 interrupted",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", nargs="?", choices=STUDIES, default=DEFAULT, help=f"what is trained ({DEFAULT})")
    parser.add_argument("--only", nargs="+", metavar="ROW", help="some of its rows")
    parser.add_argument("--seeds", type=positive_int, default=3, metavar="N", help="runs of each row (3)")
    parser.add_argument("--jobs", type=positive_int, default=1, metavar="N", help="trainings at a time (1)")
    parser.add_argument("--runs", type=Path, default=Path("runs/ablations"), help="their folder (runs/ablations)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the results (results)")
    parser.add_argument("--length", help="of multiplication: operand lengths that the figure shows (3x2)")
    parser.add_argument("--list", action="store_true", help="print the commands of what is not finished, run none")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; see `--help` for its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    study = STUDIES[args.study]
    args.only = args.only or [*study.rows]
    if unknown := [name for name in args.only if name not in study.rows]:
        return fail(parser, f"--only {unknown[0]!r}: there is no such row; --help lists them")
    if args.length:
        if not isinstance(study, Multiplication):
            return fail(parser, f"--length is of multiplication, not of {args.study}")
        if args.length not in (lengths := trained_lengths(load_config(study.config))):
            return fail(parser, f"--length {args.length}: the runs have {', '.join(lengths)}")
        study = Multiplication(args.length)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return _run(study, args)
    except (ConfigError, FileError, CheckpointError) as error:
        return fail(parser, error)
    except TrainingFailed as error:
        return fail(parser, error, 1)
    except BrokenPipeError:
        raise  # no one reads what is printed
    except OSError as error:
        return fail(parser, f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        return fail(parser, "interrupted; the same command goes on", 130)


def _run(study: Study, args: argparse.Namespace) -> int:
    path = args.out / f"{study.results}.json"
    finished = load_runs(study, path)
    known = {(run["name"], run["seed"]) for run in finished}
    # all rows come early
    asked = [Run(study, name, seed, args.runs) for seed in range(args.seeds) for name in args.only]
    new = [run for run in asked if (run.name, run.seed) not in known]
    todo = [run for run in new if not run.is_finished()]
    if args.list:
        for run in todo:
            print(" ".join(["python", *run.next_command()]))
        return 0
    finished += [run.summary() for run in new if run not in todo]
    for done, run in enumerate(train(todo, args.jobs), 1):
        finished.append(run.summary())
        save_runs(study, path, finished)
        print(f"{done} of {len(todo)}: {run.name}, seed {run.seed}: {clock(finished[-1]['seconds'])}", file=sys.stderr)
    save_runs(study, path, finished)  # with keys that the config has now
    rows = rows_of(study, finished)
    path.with_suffix(".md").write_text(document(study, rows), encoding="utf-8")
    draw(study, rows, path.with_suffix(".png"))
    print(markdown(study, rows), end="")
    return 0


def save_runs(study: Study, path: Path, runs: Sequence[dict[str, Any]]) -> None:
    """Write the finished runs, row by row."""
    ordered = [run for row in rows_of(study, runs).values() for run in row]
    write_json(path, {"budget": config_to_dict(load_config(study.config)), "runs": ordered})


def train(todo: Sequence[Run], jobs: int) -> Iterator[Run]:
    """Train runs, `jobs` at a time, and yield each that has finished; after one that failed none is begun."""
    left = iter(todo)
    with ThreadPoolExecutor(jobs) as pool:
        begun = {pool.submit(run.train) for run in islice(left, jobs)}
        while begun:
            done, begun = wait(begun, return_when=FIRST_COMPLETED)
            yield from [future.result() for future in done]
            begun |= {pool.submit(run.train) for run in islice(left, len(done))}
