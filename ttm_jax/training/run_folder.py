"""The folder of a run: config, versions, metrics, curves (checkpoints are `ttm_jax.training.checkpoint`'s)."""

import json
import os
import platform
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import ttm_jax
from ttm_jax.files import PACKAGE, naming, write_json
from ttm_jax.hardware.detect import processor_name
from ttm_jax.plotting import pyplot
from ttm_jax.training.config import ConfigError, config_to_toml
from ttm_jax.training.task import Curve

PROJECT = "token-turing-machine"
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunFolder:
    """Reads and writes the files of one run.

    `metrics.jsonl` has a line for each window of training steps ("kind": "train"), for each evaluation ("kind":
    "eval") and for each time that memory ran out ("kind": "fallback"); "step" counts the optimiser steps done. Where
    `writes` is off, which is for all processes but the first, nothing is written.
    """

    def __init__(self, path: str | Path, writes: bool = True):
        self.path = Path(path)
        self.metrics_path = self.path / "metrics.jsonl"
        self.config_path = self.path / "config.toml"
        self._writes = writes

    @contextmanager
    def lock(self) -> Generator[bool]:
        """Keep other runs out of the folder; gives False where the file system has no locks.

        The folder is made where needed, and removed again where nothing was written to it. The system ends the lock
        with the process, however that ends.

        Raises:
            ConfigError: if another run has the folder.
            FileError: if it cannot be made.
        """
        if not self._writes:
            yield True
            return
        made, lock = not self.path.exists(), self.path / "lock"
        with naming(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            file = lock.open("a")
        with file:
            locked = True
            try:
                import fcntl  # Windows has none

                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{self.path}: another run is writing there; wait for its end, or stop it") from None
            except (OSError, ModuleNotFoundError):
                locked = False
            try:
                yield locked
            finally:
                if made and [*self.path.iterdir()] == [lock]:
                    lock.unlink()
                    self.path.rmdir()

    def create(self, config: Any, versions: dict[str, Any]) -> None:
        """Write `versions.json` (see `provenance`), then `config.toml`."""
        if self._writes:
            write_json(self.path / "versions.json", versions)
            self.write_config(config)

    def write_config(self, config: Any) -> None:
        """Write `config.toml`, complete or not at all."""
        if self._writes:
            temporary = self.config_path.with_suffix(".tmp")
            with naming(self.config_path):
                temporary.write_text(config_to_toml(config), encoding="utf-8")
                temporary.replace(self.config_path)

    def init(self) -> str | None:
        """Give the checkpoint whose parameters the run started from, as `versions.json` says; None where it is none.

        Raises:
            ConfigError: if that file is missing or damaged.
        """
        path = self.path / "versions.json"
        try:
            return json.loads(path.read_text(encoding="utf-8")).get("init")
        except (OSError, ValueError, AttributeError):
            raise ConfigError(f"{path}: missing or damaged, and it says whether the run started from --init") from None

    def append(self, record: dict[str, Any]) -> None:
        """Add a line to the metrics, at once on disk."""
        if self._writes:
            with naming(self.metrics_path), self.metrics_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Give all lines of the metrics but damaged ones, as the last is where the disk was full."""
        return [record for record in self._lines() if record is not None]

    def _lines(self) -> Iterator[dict[str, Any] | None]:
        """The lines of the metrics; None for each that is damaged."""
        if not self.metrics_path.exists():
            return
        with naming(self.metrics_path):
            lines = self.metrics_path.read_text(encoding="utf-8", errors="replace").split("\n")
        for line in lines[:-1] if lines[-1] == "" else lines:
            try:
                record = json.loads(line)
            except ValueError:
                record = None
            yield record if isinstance(record, dict) and {"kind", "step"} <= record.keys() else None

    def truncate(self, step: int) -> int:
        """Drop the lines after `step`, which a resumed run writes again, and damaged ones; give how many these were.

        A damaged line after the last of `step` does not count: it is written again.
        """
        lines = list(self._lines())
        kept = [record for record in lines if record is not None and record["step"] <= step]
        if self._writes:
            temporary = self.metrics_path.with_suffix(".tmp")
            with naming(self.metrics_path):
                temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
                temporary.replace(self.metrics_path)
        return lines[: lines.index(kept[-1])].count(None) if kept else 0

    def draw_curves(self, curves: Sequence[Curve]) -> None:
        """Draw loss and learning rate over the steps, and the panels of the task, as `curves.png`."""
        if not self._writes:
            return
        plt = pyplot()
        records = self.records()
        train = [record for record in records if record["kind"] == "train"]
        columns = 1 + (len(curves) + 1) // 2
        figure, axes = plt.subplots(2, columns, figsize=(6 * columns, 8), sharex=True, layout="constrained")
        loss, rate, *panels = axes.T.flat  # loss above the rate, then column by column
        steps = [record["step"] for record in train]
        loss.semilogy(steps, [record["loss"] for record in train])
        loss.set(title="training loss")
        rate.plot(steps, [record["learning_rate"] for record in train])
        rate.set(title="learning rate")
        for axis, curve in zip(panels, curves, strict=False):
            _draw(axis, curve, [record for record in records if record["kind"] == curve.kind])
        for axis in panels[len(curves) :]:
            axis.set_visible(False)
        for axis in axes.flat:
            axis.grid(alpha=0.3)
        for axis in axes[-1]:
            axis.set(xlabel="step")
        with naming(self.path / "curves.png"):
            figure.savefig(self.path / "curves.png", dpi=110)
        plt.close(figure)


def _draw(axis: Any, curve: Curve, records: list[dict[str, Any]]) -> None:
    import matplotlib

    values = [(record["step"], curve.values(record)) for record in records]
    names = list(dict.fromkeys(name for _, found in values for name in found))
    if len(names) > 10:  # of the colours that lines have otherwise
        axis.set_prop_cycle(color=[matplotlib.colormaps["tab20"](i) for i in range(20)])
    for name in names:
        points = [(step, found[name]) for step, found in values if name in found]
        axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else None)
    axis.set(title=curve.title, ylim=curve.limits)
    if names:
        axis.legend(title=curve.legend, fontsize="small")


def provenance() -> dict[str, Any]:
    """Where a result of JAX comes from: versions, commit, machine, date, command."""
    import jax  # here alone: what else this module holds the PyTorch twin uses too, without JAX

    return describe_origin(PACKAGES, jax.devices()[0].device_kind, jax.default_backend())


def describe_origin(packages: Iterable[str], device: str, backend: str) -> dict[str, Any]:
    """Where a result comes from: versions of Python, this library and `packages`, commit, machine, date, command."""
    return {
        "python": platform.python_version(),
        PROJECT: ttm_jax.__version__,
        **{package: version(package) for package in packages},
        "commit": commit_of(PACKAGE.parent),
        "device": device,
        "backend": backend,
        "machine": f"{processor_name()}, {os.cpu_count()} CPU cores",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
    }


def commit_of(folder: Path) -> str | None:
    """The commit of a checkout of this project, "+changes" where it has any outside results/.

    None for any other folder: below a user's own repository an installed package has no commit.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", folder, *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
        if project["project"]["name"] != PROJECT or not Path(git("rev-parse", "--show-toplevel")).samefile(folder):
            return None
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, ValueError, KeyError, subprocess.SubprocessError):
        return None


def _command() -> str:
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])
