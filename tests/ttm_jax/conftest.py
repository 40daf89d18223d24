"""Runs of the tiny configuration in JAX, what a run left behind as comparable values, and machines of any mode."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from ttm_jax.multiplication.config import Config
from ttm_jax.multiplication.model import TTMModel
from ttm_jax.multiplication.multiplier import Multiplier
from ttm_jax.multiplication.objective import create_state, make_objective
from ttm_jax.multiplication.problems import encode_problems
from ttm_jax.training.checkpoint import load_meta, load_params, load_state, save_params
from ttm_jax.training.checkpoint_files import BEST, LATEST, find_checkpoint
from ttm_jax.training.config import config_to_dict, override
from ttm_jax.training.jax_command import start


@pytest.fixture(scope="session")
def train(make_train) -> Callable[..., str]:
    """`train(config, workdir, resume=False, stop_at=None, display=None)` says how the run ended."""
    return make_train(start)


@pytest.fixture(scope="session")
def tiny_run(run_tiny, train) -> Any:
    """A run that never stopped. To be read, not changed."""
    return run_tiny(train)


@pytest.fixture(scope="session")
def make_multiplier(tiny_config, random_params) -> Callable[..., Multiplier]:
    """`make_multiplier(read="mlp", write="mlp", ...)`: fields of the model that differ from the tiny config."""

    def make(**fields) -> Multiplier:
        data = dataclasses.replace(tiny_config.data, augment=())
        config = dataclasses.replace(tiny_config, model=dataclasses.replace(tiny_config.model, **fields), data=data)
        model = TTMModel(config.model)
        params = random_params(model, encode_problems(np.array([1]), np.array([1])))
        return Multiplier(model, {"params": params}, config, Path("random"))

    return make


@pytest.fixture(scope="session")
def without_end() -> Callable[[Multiplier], Multiplier]:
    """The same network with a head that writes 7 at every place."""

    def change(multiplier: Multiplier) -> Multiplier:
        params = jax.tree.map(np.array, multiplier.variables["params"])
        params["head"]["digit_head"]["bias"][7] += 100
        return dataclasses.replace(multiplier, variables={"params": params})

    return change


@pytest.fixture
def baseline(tiny_config, tmp_path) -> Path:
    """A checkpoint of a plain Transformer, which has no machine."""
    config = override(tiny_config, {"model.kind": "transformer", "model.carry_head": "false"})
    save_params(tmp_path / "baseline", create_state(config).params, {"config": config_to_dict(config)})
    return tmp_path / "baseline"


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
        state = load_state(latest, create_state(config))
        lines = (path / "metrics.jsonl").read_text().splitlines()
        return {
            "checkpoints": {kind: sorted(p.name for p in (path / kind).iterdir()) for kind in (LATEST, BEST)},
            "state": _leaves({"params": state.params, "opt_state": state.opt_state, "step": state.step}),
            "best": _leaves(load_params(best, make_objective(config))),
            "progress": without_seconds(load_meta(latest)[1]["progress"]),
            "metrics": [without_seconds(json.loads(line)) for line in lines],
        }

    return take


def _products(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracting, _), _ = equation.params["dimension_numbers"]
            left, out = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            if contracting:  # else it is elementwise
                total += math.prod(out) * math.prod(left[axis] for axis in contracting)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                total += times * _products(inner) if hasattr(inner, "eqns") else 0
    return total


@pytest.fixture(scope="session")
def products() -> Callable[[Any], int]:
    """Multiply-adds of all matrix products of a jaxpr, those of inner jaxprs too, of a scan's body at each step."""
    return _products
