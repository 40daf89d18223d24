"""Checkpoints on disk: the only module that knows orbax.

A checkpoint is a folder with `params/` (arrays), `meta/` (JSON: config, step, curriculum, versions) and, where
training can go on from it, `training/` (optimiser state). Orbax writes it under another name and renames it when
it is complete, so a checkpoint is complete or absent; `checksums.json` tells when it was damaged later. A run folder
keeps the latest two in `checkpoints/STEP` and the best in `best/STEP`.
"""

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from ttm_jax.config import Config, ConfigError, config_from_dict
from ttm_jax.state import TrainState, create_state, random_keys

FORMAT = "ttm-multiplier-1"
LATEST, BEST = "checkpoints", "best"
CHECKSUMS = "checksums.json"

logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports each save there


class CheckpointError(ValueError):
    """A checkpoint that is missing, foreign or damaged; the message is one line for the user."""


class CheckpointFolder:
    """The checkpoints of one kind (`LATEST` or `BEST`) in a run folder."""

    def __init__(self, workdir: Path, kind: str):
        self.path = Path(workdir).absolute() / kind
        keep = 2 if kind == LATEST else 1
        removed = [self.path / str(step) for step in saved_steps(self.path.parent, kind)[:-keep]]
        for left_by_a_kill in (*removed, *self.path.glob("*.orbax-checkpoint-tmp")):
            shutil.rmtree(left_by_a_kill)
        self._manager = ocp.CheckpointManager(
            self.path,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep,
                enable_async_checkpointing=False,
            ),
        )
        self._with_training = kind == LATEST

    def save(self, state: TrainState, meta: dict[str, Any]) -> Path:
        """Writes the state and `meta` as the checkpoint of the state's step; nothing where it is there already."""
        step = int(state.step)
        items = {
            "params": ocp.args.StandardSave(state.params),
            "meta": ocp.args.JsonSave({"format": FORMAT, **meta}),
        }
        if self._with_training:
            items["training"] = ocp.args.StandardSave(_training_item(state))
        if step not in self._manager.all_steps():
            self._manager.save(step, args=ocp.args.Composite(**items))
            _write_checksums(self.path / str(step))
        return self.path / str(step)

    def close(self) -> None:
        """Ends the manager's threads."""
        self._manager.close()


def find_checkpoint(path: str | Path, kinds: tuple[str, ...] = (BEST, LATEST)) -> Path:
    """The checkpoint that a path stands for: itself, or the newest of the first kind that a run folder has.

    Raises:
        CheckpointError: if there is none.
    """
    path = Path(path).absolute()
    try:
        names = [entry.name for entry in path.iterdir()]
        if {"params", "meta"} <= set(names):
            return path
        for kind in kinds:
            if kind in names and (steps := saved_steps(path, kind)):
                return path / kind / str(steps[-1])
    except FileNotFoundError:
        raise CheckpointError(f"checkpoint {path}: no such file or folder") from None
    except NotADirectoryError:
        pass  # said below
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read: {error.strerror}") from None
    raise CheckpointError(
        f"checkpoint {path}: neither a checkpoint (a folder with params/ and meta/) nor a run folder with one"
    )


def saved_steps(workdir: Path, kind: str) -> list[int]:
    """The steps of a run folder's checkpoints of one kind, in order."""
    folder = workdir / kind
    if not folder.exists():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def load_meta(path: Path) -> tuple[Config, dict[str, Any]]:
    """The config and the other metadata of a checkpoint.

    Raises:
        CheckpointError: if it is not one of this project's or its config is not one that this version knows.
    """
    _verify(path, "meta")
    try:
        meta = json.loads((path / "meta" / "metadata").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"checkpoint {path}: meta/ is missing or damaged") from None
    found = meta.get("format") if isinstance(meta, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"checkpoint {path}: not a multiplier (format {FORMAT!r} wanted, {found!r} found)")
    try:
        return config_from_dict(meta["config"]), meta
    except (ConfigError, KeyError) as error:
        raise CheckpointError(f"checkpoint {path}: its config does not fit this version: {error}") from None


def load_params(path: Path, config: Config) -> dict:
    """The parameters of a checkpoint, on the default device.

    Raises:
        CheckpointError: if the arrays are missing, damaged or not those of the config.
    """
    return _restore(path, "params", jax.eval_shape(lambda: create_state(config)).params)


def load_state(path: Path, config: Config) -> TrainState:
    """The training state of a checkpoint, to go on from.

    Raises:
        CheckpointError: if the checkpoint holds no training state, or is damaged.
    """
    if not (path / "training").is_dir():
        raise CheckpointError(f"checkpoint {path}: has no training/ to go on from")
    like = jax.eval_shape(lambda: create_state(config))
    params = _restore(path, "params", like.params)
    training = _restore(path, "training", _training_item(like))
    return like.replace(params=params, key=random_keys(config)[1], **training)


def _training_item(state: TrainState) -> dict[str, Any]:
    return {"step": state.step, "opt_state": state.opt_state}


def _restore(path: Path, item: str, like: Any) -> Any:
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=device), like)
    try:
        # What can be checked is checked first: about a truncated file or another shape orbax prints pages.
        _verify(path, item)
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

    found, asked = shapes(stored), shapes(wanted)
    for name in sorted(found.keys() | asked.keys()):
        if found.get(name) != asked.get(name):
            raise CheckpointError(
                f"checkpoint {path}: {item}/ is of another model: {name} is {found.get(name, 'not there')}, "
                f"{asked.get(name, 'nothing')} wanted"
            )


def _write_checksums(path: Path) -> None:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    checksums = {file.relative_to(path).as_posix(): _checksum(file) for file in files}
    temporary = path / f"{CHECKSUMS}.tmp"
    temporary.write_text(json.dumps(checksums, indent=1) + "\n", encoding="utf-8")
    temporary.rename(path / CHECKSUMS)


def _verify(path: Path, item: str) -> None:
    """Raises CheckpointError where a file of an item is not what was saved."""
    try:
        checksums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return  # killed between the two: orbax completes the checkpoint, then this is written
    except (OSError, ValueError):
        raise CheckpointError(f"checkpoint {path}: {CHECKSUMS} is damaged") from None
    for name, checksum in checksums.items():
        if not name.startswith(f"{item}/"):
            continue
        if not (path / name).is_file():
            raise CheckpointError(f"checkpoint {path}: {name} is missing")
        if _checksum(path / name) != checksum:
            raise CheckpointError(f"checkpoint {path}: {name} is damaged: its checksum differs")


def _checksum(file: Path) -> str:
    try:
        with file.open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"checkpoint {file}: cannot be read: {error.strerror}") from None
