"""Checkpoints of JAX states on disk (see `checkpoint_files`): the only module that knows orbax."""

import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ttm_jax.training.checkpoint_files import (
    BEST,
    JAX_FORMAT,
    KEPT,
    LATEST,
    CheckpointError,
    check_arrays,
    find_checkpoint,
    read_meta,
    saved_steps,
    verify,
    write_checksums,
)
from ttm_jax.training.config import Config, ConfigError
from ttm_jax.training.step import TrainState, check_precision, create_state, random_keys

__all__ = [
    "BEST",
    "LATEST",
    "CheckpointError",
    "CheckpointFolder",
    "find_checkpoint",
    "load_meta",
    "load_params",
    "load_state",
    "save_params",
    "saved_steps",
]

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports each save there


class CheckpointFolder:
    """The checkpoints of one kind (`LATEST` or `BEST`) in a run folder."""

    def __init__(self, workdir: Path, kind: str):
        self.path = Path(workdir).absolute() / kind
        removed = [self.path / str(step) for step in saved_steps(self.path.parent, kind)[: -KEPT[kind]]]
        for left_by_a_kill in (*removed, *self.path.glob("*.orbax-checkpoint-tmp")):
            shutil.rmtree(left_by_a_kill)
        self._manager = ocp.CheckpointManager(
            self.path,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT[kind],
                enable_async_checkpointing=False,
            ),
        )
        self._with_training = kind == LATEST

    def save(self, state: TrainState, meta: dict[str, Any]) -> Path:
        """Writes the state and `meta` as the checkpoint of the state's step; nothing where it is there already."""
        step = int(jax.device_get(state.step))
        items = _items(state.params, meta)
        if self._with_training:
            items["training"] = ocp.args.StandardSave(_training_item(state))
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.Composite(**items))
            write_checksums(self.path / str(step))
        return self.path / str(step)

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()


def load_meta(path: Path) -> tuple[Config, dict[str, Any]]:
    """The config and the other metadata of a checkpoint.

    Raises:
        CheckpointError: if it is not one of this project's or its config is not one that this version knows.
    """
    return read_meta(path, JAX_FORMAT)


def save_params(path: Path, params: Any, meta: dict[str, Any]) -> None:
    """Writes parameters and `meta`, which has the config, as a checkpoint at a path where there is nothing yet."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        checkpointer.save(path.absolute(), args=ocp.args.Composite(**_items(params, meta)))
    write_checksums(path)


def load_params(path: Path, config: Config) -> dict:
    """The parameters of a checkpoint, on the default device.

    Raises:
        CheckpointError: if the arrays are missing, damaged or not those of the config, or float64 where JAX is not
            allowed it.
    """
    _check_precision(path, config)
    return _restore(path, "params", jax.eval_shape(lambda: create_state(config)).params)


def load_state(path: Path, config: Config) -> TrainState:
    """The training state of a checkpoint, to go on from.

    Raises:
        CheckpointError: if the checkpoint holds no training state, is damaged, or is float64 without JAX's x64.
    """
    if not (path / "training").is_dir():
        raise CheckpointError(f"checkpoint {path}: has no training/ to go on from")
    _check_precision(path, config)
    like = jax.eval_shape(lambda: create_state(config))
    params = _restore(path, "params", like.params)
    training = _restore(path, "training", _training_item(like))
    return like.replace(params=params, key=random_keys(config)[1], **training)


def _check_precision(path: Path, config: Config) -> None:
    try:
        check_precision(config)
    except ConfigError as error:
        raise CheckpointError(f"checkpoint {path}: {error}") from None


def _items(params: Any, meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "params": ocp.args.StandardSave(params),
        "meta": ocp.args.JsonSave({**meta, "format": JAX_FORMAT}),
    }


def _training_item(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def _restore(path: Path, item: str, like: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    try:
        # What can be checked is checked first: about a truncated file or another shape orbax prints pages.
        verify(path, item)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            _check_shapes(path, item, checkpointer.metadata(path / item).item_metadata.tree, wanted)
            restored = checkpointer.restore(path / item, args=ocp.args.StandardRestore(wanted))
    except CheckpointError:
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds for a damaged folder
        raise CheckpointError(f"checkpoint {path}: {item}/ is damaged") from error
    # Uncommitted to a device, as those of a fresh state: committed ones would compile each step anew.
    return jax.tree.map(lambda x: jnp.array(np.asarray(x)), restored)


def _check_shapes(path: Path, item: str, stored: Any, wanted: Any) -> None:
    def shapes(tree: Any) -> dict[str, str]:
        return {
            jax.tree_util.keystr(key, simple=True, separator="/"): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
            for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    check_arrays(path, item, shapes(stored), shapes(wanted))
