"""The tasks that the trainer knows, by name: the only module that knows all of them.

A task is a package of the library. Its `config.Config` is what a TOML file is read into, `task.make_task(config)` makes
its batches and evaluations, and `objective.make_objective(config)` its model and loss. What it has trained is loaded by
`load(path)` of the module that `TASKS` names, and measured by the command `evaluate.main(argv)`. `ttm_torch` has
modules of the same names. `docs/tasks.md` walks through one.
"""

import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ttm_jax.training import config as training
from ttm_jax.training.checkpoint_files import FORMATS, CheckpointError, find_checkpoint, read_meta
from ttm_jax.training.config import DEFAULT_TASK, ConfigError
from ttm_jax.training.task import Task

TASKS = {"multiplication": "multiplier", "text": "language_model"}  # and the module of what each has trained


def make_task(config: Any) -> Task:
    """Make the task of a config: its batches, records and evaluations."""
    return _module(config.task, "task").make_task(config)


def make_objective(config: Any, package: str = "ttm_jax") -> Any:
    """Make the objective of a config, in JAX or in "ttm_torch".

    Raises:
        ConfigError: if this framework cannot have it, as float64 where JAX is not allowed it.
    """
    if importlib.util.find_spec(f"{package}.{config.task}") is None:
        raise ConfigError(f"{package} has no task {config.task}; python -m ttm_jax.train has it")
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


def load(name: str | Path) -> Any:
    """Load what a checkpoint holds, as its own task does: a `Multiplier`, or a `LanguageModel`.

    Args:
        name: a checkpoint, a run folder (its best checkpoint, or else its latest), or the name of a shipped
            checkpoint ("five_digits").

    Raises:
        CheckpointError: naming the path and what is wrong with it.
    """
    return load_trained("ttm_jax", name)


def load_trained(package: str, name: str | Path, **options: Any) -> Any:
    """Load as `load` does, by "ttm_jax" or "ttm_torch"; the options are those of its loader."""
    path = find_checkpoint(name)
    task = _task_of(path, package)
    return _module(task, TASKS[task], package).load(path, **options)


def evaluate(package: str, arguments: Sequence[str]) -> int:
    """Run the evaluate command of the task of the checkpoint that the arguments name; give its exit code."""
    task = DEFAULT_TASK
    for argument in arguments:
        with suppress(CheckpointError):  # a flag, or the value of one, or a checkpoint that the command refuses
            task = _task_of(find_checkpoint(argument), package)
            break
    return _module(task, "evaluate", package).main(arguments)


def _task_of(path: Path, package: str) -> str:
    return config_of_checkpoint(path, read_meta(path, FORMATS[package])).task


def _module(task: str, name: str, package: str = "ttm_jax") -> Any:
    return importlib.import_module(f"{package}.{task}.{name}")
