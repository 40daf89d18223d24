"""Runs of the tiny configuration in JAX, and what a run left behind as comparable values."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ttm_jax.checkpoint import BEST, LATEST, find_checkpoint, load_meta, load_params, load_state
from ttm_jax.config import Config
from ttm_jax.train import Trainer


@pytest.fixture(scope="session")
def train(make_train) -> Callable[..., str]:
    """`train(config, workdir, resume=False, stop_at=None, display=None)` says how the run ended."""
    return make_train(Trainer)


@pytest.fixture(scope="session")
def tiny_run(run_tiny, train) -> Any:
    """A run that never stopped. To be read, not changed."""
    return run_tiny(train)


def _leaves(tree: Any) -> dict[str, tuple[str, bytes]]:
    return {
        jax.tree_util.keystr(path): (f"{leaf.dtype}{leaf.shape}", np.asarray(leaf).tobytes())
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@pytest.fixture(scope="session")
def snapshot(without_seconds) -> Callable[[Path, Config], dict[str, Any]]:
    """All that a run left behind, to the bit, but for the clock."""

    def take(path: Path, config: Config) -> dict[str, Any]:
        latest, best = find_checkpoint(path, (LATEST,)), find_checkpoint(path, (BEST,))
        state = load_state(latest, config)
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return {
            "checkpoints": {kind: sorted(p.name for p in (path / kind).iterdir()) for kind in (LATEST, BEST)},
            "state": _leaves({"params": state.params, "opt_state": state.opt_state, "step": state.step}),
            "best": _leaves(load_params(best, config)),
            "progress": without_seconds(load_meta(latest)[1]["progress"]),
            "metrics": [without_seconds(json.loads(line)) for line in lines],
        }

    return take
