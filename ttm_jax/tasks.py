"""The tasks that the trainer knows, by name: the only module that knows all of them.

A task is a package of the library. Its `config.Config` is what a TOML file is read into, `task.make_task(config)` makes
its batches and evaluations, and `objective.make_objective(config)` its model and loss; `ttm_torch` has an `objective`
of the same name. `docs/tasks.md` walks through one.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttm_jax.training import config as training
from ttm_jax.training.checkpoint_files import CheckpointError
from ttm_jax.training.config import DEFAULT_TASK, ConfigError
from ttm_jax.training.task import Task

TASKS = ("multiplication", "text")


def make_task(config: Any) -> Task:
    """Make the task of a config: its batches, records and evaluations."""
    return _module(config.task, "task").make_task(config)


def make_objective(config: Any, package: str = "ttm_jax") -> Any:
    """Make the objective of a config, in JAX or in "ttm_torch".

    Raises:
        ConfigError: if this framework cannot have it, as float64 where JAX is not allowed it.
    """
    return _module(config.task, "objective", package).make_objective(config)


def config_from_dict(values: Mapping[str, Any]) -> Any:
    """Make the config of the task that the values name; keys left out keep their defaults.

    Raises:
        ConfigError: for an unknown task or key, a wrong type or an impossible value, naming the key.
    """
    name = values.get("task", DEFAULT_TASK) if isinstance(values, Mapping) else DEFAULT_TASK
    if name not in TASKS:
        raise ConfigError(f"task must be one of {', '.join(TASKS)}; got {name!r}")
    return training.config_from_dict(_module(name, "config").Config, values)


def load_config(path: str | Path) -> Any:
    """Read a config: a TOML file, or a shipped one by its name ("quick"); keys left out keep their defaults.

    Raises:
        ConfigError: naming the file, the key, and what is allowed.
    """
    path = training.find_config(str(path))
    values = training.read_values(path)
    try:
        return config_from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"config {path}: {error}") from None


def config_of_checkpoint(path: Path, meta: Mapping[str, Any]) -> Any:
    """Make the config that a checkpoint's metadata hold.

    Raises:
        CheckpointError: if it is not one that this version knows.
    """
    try:
        return config_from_dict(meta["config"])
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"checkpoint {path}: its config does not fit this version: {error}") from None


def _module(task: str, name: str, package: str = "ttm_jax") -> Any:
    return importlib.import_module(f"{package}.{task}.{name}")
