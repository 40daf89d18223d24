"""Runs of the tiny configuration in PyTorch, and what a run left behind as comparable values."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ttm_jax.multiplication.config import Config
from ttm_jax.training.checkpoint_files import BEST, LATEST, find_checkpoint
from ttm_torch.multiplication.objective import create_model, create_state
from ttm_torch.training.checkpoint import load_meta, load_model, load_state
from ttm_torch.training.command import start


@pytest.fixture(scope="session")
def train(make_train) -> Callable[..., str]:
    """`train(config, workdir, resume=False, stop_at=None, display=None)` says how the run ended."""
    return make_train(partial(start, device="cpu"))


@pytest.fixture(scope="session")
def tiny_run(run_tiny, train) -> Any:
    """A run that never stopped. To be read, not changed."""
    return run_tiny(train)


def _bits(value: Any) -> Any:
    """Nested values with each tensor as its type, shape and bytes."""
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{list(value.shape)}", value.detach().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _bits(item) for key, item in value.items()}
    return [_bits(item) for item in value] if isinstance(value, list) else value


@pytest.fixture(scope="session")
def bits() -> Callable[[Any], Any]:
    return _bits


@pytest.fixture(scope="session")
def snapshot(without_seconds) -> Callable[[Path, Config], dict[str, Any]]:
    """All that a run left behind, to the bit, but for the clock."""

    def take(path: Path, config: Config) -> dict[str, Any]:
        latest, best = find_checkpoint(path, (LATEST,)), find_checkpoint(path, (BEST,))
        state = load_state(latest, create_state(config))
        parts = {"model": state.model, "optimizer": state.optimizer, "scheduler": state.scheduler}
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return {
            "checkpoints": {kind: sorted(p.name for p in (path / kind).iterdir()) for kind in (LATEST, BEST)},
            "state": {name: _bits(dict(part.state_dict())) for name, part in parts.items()},
            "best": _bits(dict(load_model(best, create_model(config)).state_dict())),
            "progress": without_seconds(load_meta(latest)[1]["progress"]),
            "metrics": [without_seconds(json.loads(line)) for line in lines],
        }

    return take
