"""A tiny configuration, runs of it, and what a run left behind as comparable values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from ttm_jax.checkpoint import BEST, LATEST, find_checkpoint, load_meta, load_params, load_state
from ttm_jax.config import Config, config_from_dict
from ttm_jax.train import Trainer

# Forty steps. The stage ends at step 20, in the middle of a mixture window; dropout and augmentation are on.
# The cheapest modes of the machine, because each new config compiles a training step of its own.
TINY = {
    "model": {
        "width": 16,
        "memory_size": 4,
        "process_size": 2,
        "read": "pooling",
        "write": "concat",
        "processing": "mlp",
        "num_layers": 1,
        "mlp_dim": 16,
        "num_heads": 2,
        "dropout_rate": 0.1,
        "carry_head": True,
    },
    "data": {"batch_size": 8, "stages": [[0, 9], [0, 99]], "max_digits": [2, 2]},
    "curriculum": {"last_stage": 1, "max_epochs_per_stage": 3, "mixture_every": 3},
    "optimizer": {"learning_rate": 1e-2, "warmup_steps": 5},
    "train": {
        "seed": 7,
        "max_epochs": 8,
        "steps_per_epoch": 5,
        "eval_every_epochs": 2,
        "eval_pairs": 16,
        "eval_batch_size": 16,
        "patience_epochs": "none",
    },
}


class RecordingDisplay:
    """Keeps what the training loop tells."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.steps: list[int] = []
        self.records: list[dict[str, Any]] = []
        self.evaluations: list[tuple[dict[str, Any], list[tuple[str, str, str]]]] = []

    def __enter__(self) -> "RecordingDisplay":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def message(self, text: str) -> None:
        self.messages.append(text)

    def step(self, step: int, examples_per_second: float | None) -> None:
        self.steps.append(step)

    def train(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def evaluation(self, record: dict[str, Any], examples: list[tuple[str, str, str]]) -> None:
        self.evaluations.append((record, examples))


class TinyRun(NamedTuple):
    """A finished run of the tiny config."""

    path: Path
    config: Config
    display: RecordingDisplay


def _train(
    config: Config,
    workdir: Path,
    resume: bool = False,
    stop_at: int | None = None,
    display: RecordingDisplay | None = None,
) -> str:
    trainer = Trainer(config, workdir, resume, lambda: stop_at is not None and trainer.progress.step >= stop_at)
    return trainer.run(display or RecordingDisplay())


@pytest.fixture(scope="session")
def train() -> Callable[..., str]:
    """`train(config, workdir, resume=False, stop_at=None, display=None)` says how the run ended."""
    return _train


@pytest.fixture
def display() -> RecordingDisplay:
    return RecordingDisplay()


@pytest.fixture(scope="session")
def tiny_config() -> Config:
    return config_from_dict(TINY)


@pytest.fixture(scope="session")
def tiny_run(tiny_config, tmp_path_factory) -> TinyRun:
    """A run that never stopped. To be read, not changed."""
    path, display = tmp_path_factory.mktemp("tiny"), RecordingDisplay()
    assert _train(tiny_config, path, display=display) == "finished"
    return TinyRun(path, tiny_config, display)


def _without_seconds(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_seconds(item) for key, item in value.items() if key != "seconds"}
    return value


def _leaves(tree: Any) -> dict[str, tuple[str, bytes]]:
    return {
        jax.tree_util.keystr(path): (f"{leaf.dtype}{leaf.shape}", np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.fixture(scope="session")
def snapshot() -> Callable[[Path, Config], dict[str, Any]]:
    """All that a run left behind, to the bit, but for the clock."""

    def take(path: Path, config: Config) -> dict[str, Any]:
        latest, best = find_checkpoint(path, (LATEST,)), find_checkpoint(path, (BEST,))
        state = load_state(latest, config)
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return {
            "checkpoints": {kind: sorted(p.name for p in (path / kind).iterdir()) for kind in (LATEST, BEST)},
            "state": _leaves({"params": state.params, "opt_state": state.opt_state, "step": state.step}),
            "best": _leaves(load_params(best, config)),
            "progress": _without_seconds(load_meta(latest)[1]["progress"]),
            "metrics": [_without_seconds(json.loads(line)) for line in lines],
        }

    return take
