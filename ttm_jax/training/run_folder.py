"""The folder of a run: config, versions, metrics, curves (checkpoints are `ttm_jax.training.checkpoint`'s)."""

import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ttm_jax.files import PACKAGE
from ttm_jax.hardware.detect import processor_name
from ttm_jax.training.config import Config, config_to_toml

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class RunFolder:
    """Reads and writes the files of one run.

    `metrics.jsonl` has a line for each window of training steps ("kind": "train"), for each evaluation ("kind":
    "eval") and for each time that memory ran out ("kind": "fallback"); "step" counts the optimiser steps done.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.metrics_path = self.path / "metrics.jsonl"
        self.config_path = self.path / "config.toml"

    def create(self, config: Config, versions: dict[str, Any]) -> None:
        """Makes the folder with `config.toml` and `versions.json` (see `provenance`)."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.config_path.write_text(config_to_toml(config), encoding="utf-8")
        (self.path / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")

    def append(self, record: dict[str, Any]) -> None:
        """Adds a line to the metrics, at once on disk."""
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """All complete lines of the metrics; a last line cut short by a crash is left out."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text(encoding="utf-8").split("\n")
        return [json.loads(line) for line in lines[:-1]]

    def truncate(self, step: int) -> None:
        """Drops the lines after `step`, which a resumed run writes again."""
        kept = [record for record in self.records() if record["step"] <= step]
        temporary = self.metrics_path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        temporary.replace(self.metrics_path)

    def draw_curves(self) -> Path:
        """Loss, learning rate, exact match and mixture over the steps, as `curves.png`."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as plt

        records = self.records()
        train = [record for record in records if record["kind"] == "train"]
        evals = [record for record in records if record["kind"] == "eval"]
        figure, axes = plt.subplots(2, 2, figsize=(12, 8), sharex=True, layout="constrained")
        (loss, match), (rate, mixture) = axes
        steps = [record["step"] for record in train]
        loss.semilogy(steps, [record["loss"] for record in train])
        loss.set(title="training loss")
        rate.plot(steps, [record["learning_rate"] for record in train])
        rate.set(title="learning rate", xlabel="step")
        for axis, source, key, title in (
            (match, evals, "exact_match", "held-out exact match, %"),
            (mixture, train, "mixture", "share of each operand length, %"),
        ):
            names = list(dict.fromkeys(name for record in source for name in record[key]))
            if len(names) > 10:  # of the colours that lines have otherwise
                axis.set_prop_cycle(color=[plt.get_cmap("tab20")(i) for i in range(20)])
            for name in names:
                points = [(r["step"], _share(r[key][name])) for r in source if name in r[key]]
                axis.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 50 else None)
            axis.set(title=title, ylim=(-2, 102))
            if source:
                axis.legend(title="digits", fontsize="small")
        mixture.set(xlabel="step")
        for axis in axes.flat:
            axis.grid(alpha=0.3)
        path = self.path / "curves.png"
        figure.savefig(path, dpi=110)
        plt.close(figure)
        return path


def provenance() -> dict[str, Any]:
    """Where a result of JAX comes from: versions, commit, machine, date, command."""
    import jax  # here alone: what else this module holds the PyTorch twin uses too, without JAX

    return describe_origin(PACKAGES, jax.devices()[0].device_kind, jax.default_backend())


def describe_origin(packages: Iterable[str], device: str, backend: str) -> dict[str, Any]:
    """Where a result comes from: versions of Python and of `packages`, commit, machine, date, command."""
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "commit": _commit(),
        "device": device,
        "backend": backend,
        "machine": f"{processor_name()}, {os.cpu_count()} CPU cores",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _command(),
    }


def _commit() -> str | None:
    """The commit of the source tree, "+changes" where it has any outside results/; None where it is no git tree."""
    source = PACKAGE.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", source, *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        changes = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!results")
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _command() -> str:
    spec = sys.modules["__main__"].__spec__
    if spec is None:
        return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    return shlex.join(["python", "-m", spec.name.removesuffix(".__main__"), *sys.argv[1:]])


def _share(value: Any) -> float:
    return 100 * (value["correct"] / value["total"] if isinstance(value, dict) else value)
