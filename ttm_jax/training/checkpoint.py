"""Checkpoints of JAX states on disk (see `checkpoint_files`): the only module that knows orbax."""

import dataclasses
import logging
import os
import re
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ttm_jax.tasks import config_of_checkpoint
from ttm_jax.training.checkpoint_files import (
    JAX_FORMAT,
    CheckpointError,
    KeptCheckpoints,
    check_arrays,
    plain_path,
    read_meta,
    unreadable,
    verify,
    write_checkpoint,
)
from ttm_jax.training.settings import lenient
from ttm_jax.training.step import Objective, TrainState

# Orbax tells absl's log of each save, and of each fault in pages; what is worth telling is raised.
logging.getLogger("absl").addFilter(lambda record: "/orbax/" not in record.pathname.replace(os.sep, "/"))

_OLDER = ("key",)  # of a state's fields: what checkpoints until version 0.1 don't have


class CheckpointFolder(KeptCheckpoints):
    """The checkpoints of one kind (`LATEST` or `BEST`) in a run folder."""

    def __init__(self, workdir: Path, kind: str):
        super().__init__(workdir, kind, leads=jax.process_index() == 0)

    @lenient()
    def save(self, state: TrainState, meta: dict[str, Any]) -> Path:
        """Write the state and `meta` as the checkpoint of the state's step; nothing where it is there already.

        Raises:
            CheckpointError: if it cannot be written, as where the disk is full; older ones are as they were.
        """
        training = _training_item(state) if self.with_training else None
        return self.write(int(jax.device_get(state.step)), partial(_write, state.params, meta, training))


def load_meta(path: Path) -> tuple[Any, dict[str, Any]]:
    """Read the config and the other metadata of a checkpoint.

    Raises:
        CheckpointError: if it is not one of this project's or its config is not one that this version knows.
    """
    meta = read_meta(path, JAX_FORMAT)
    return config_of_checkpoint(path, meta), meta


@lenient()
def save_params(path: Path, params: Any, meta: dict[str, Any]) -> None:
    """Write parameters and `meta`, which has the config, as a checkpoint at a path where there is nothing yet."""
    write_checkpoint(path, partial(_write, params, meta, None))


@lenient()
def load_params(path: Path, objective: Objective) -> Any:
    """Read the parameters of a checkpoint, onto the default device.

    Raises:
        CheckpointError: if the arrays are missing, damaged or not those of the objective.
    """
    shapes = jax.eval_shape(objective.init, jax.eval_shape(lambda: jax.random.key(0)))
    # Uncommitted to a device, as fresh ones are.
    return jax.tree.map(lambda x: jnp.array(np.asarray(x)), _restore(path, "params", _on_default_device(shapes)))


@lenient()
def load_state(path: Path, like: TrainState, shardings: TrainState | None = None) -> TrainState:
    """Read the whole training state of a checkpoint, to go on from.

    Args:
        path: of the checkpoint.
        like: a fresh state.
        shardings: where each array goes; to the default device where None.

    Raises:
        CheckpointError: if the checkpoint holds no training state, is damaged or is of another model.
    """
    if not (path / "training").is_dir():
        raise CheckpointError(f"checkpoint {path}: has no training/ to go on from")
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), like)
    if shardings is None:
        shapes = _on_default_device(shapes)
    else:
        shapes = jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes, shardings
        )
    wanted = _training_item(shapes)
    stored = _stored(path, "training")
    older = {
        name: jax.device_put(getattr(like, name), getattr(shapes, name).sharding)
        for name in _OLDER
        if name not in stored
    }
    wanted = {name: value for name, value in wanted.items() if name not in older}
    restored = _restore(path, "training", wanted, stored)
    if "key" in restored:
        restored["key"] = jax.random.wrap_key_data(restored["key"], impl=jax.random.key_impl(like.key))
    return like.replace(params=_restore(path, "params", shapes.params), **restored, **older)


def _write(params: Any, meta: dict[str, Any], training: dict[str, Any] | None, path: Path) -> None:
    trees = {"params": params} if training is None else {"params": params, "training": training}
    items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
    _reserve(path.parent, sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) + 2**17)
    composite = ocp.args.Composite(**items, meta=ocp.args.JsonSave({**meta, "format": JAX_FORMAT}))
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(path, args=composite)
    except ValueError as error:
        if (found := _of_system(error)) is error:
            raise
        raise found from error
    for name, tree in trees.items():
        _check_shapes(path, name, _stored(path, name), tree)


def _reserve(folder: Path, size: int) -> None:
    """Raises OSError where a folder has no room, or no quota, for so many bytes: in a save orbax tells it in pages."""
    if hasattr(os, "posix_fallocate"):
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)


def _training_item(state: TrainState) -> dict[str, Any]:
    """All fields of a state, or of its shapes, that hold arrays, but for the parameters; random keys as numbers."""
    fields = [field.name for field in dataclasses.fields(state) if field.metadata.get("pytree_node", True)]
    item = {name: getattr(state, name) for name in fields if name != "params"}
    return {name: _key_as_numbers(value) for name, value in item.items() if jax.tree.leaves(value)}


def _key_as_numbers(value: Any) -> Any:
    if not jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key):
        return value
    if isinstance(value, jax.ShapeDtypeStruct):
        numbers = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(value.shape, value.dtype))
        return jax.ShapeDtypeStruct(numbers.shape, numbers.dtype, sharding=value.sharding)
    return jax.random.key_data(value)


def _on_default_device(shapes: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), shapes)


def _stored(path: Path, item: str) -> Any:
    """The shapes of an item as it is on disk."""
    verify(path, item)
    try:
        with plain_path(path) as plain, ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            return checkpointer.metadata(plain / item).item_metadata.tree
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # orbax and tensorstore raise many kinds for a damaged folder
        raise unreadable(path, item, _of_system(error)) from error


def _restore(path: Path, item: str, wanted: Any, stored: Any = None) -> Any:
    # What can be checked is checked first: about a truncated file or another shape orbax prints pages.
    _check_shapes(path, item, _stored(path, item) if stored is None else stored, wanted)
    try:
        with plain_path(path) as plain, ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            return checkpointer.restore(plain / item, args=ocp.args.StandardRestore(wanted))
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        raise unreadable(path, item, _of_system(error)) from error


def _of_system(error: Exception) -> Exception:
    """Give the system's error in place of tensorstore's, a page long, which has its number."""
    found = re.search(r"os_error_code='(\d+)'", str(error))
    return error if found is None else OSError(number := int(found[1]), os.strerror(number))


def _check_shapes(path: Path, item: str, stored: Any, wanted: Any) -> None:
    def shapes(tree: Any) -> dict[str, str]:
        return {
            jax.tree_util.keystr(key, simple=True, separator="/"): f"{np.dtype(leaf.dtype)}{list(leaf.shape)}"
            for key, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }

    check_arrays(path, item, shapes(stored), shapes(wanted))
