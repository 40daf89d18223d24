"""Checkpoints of PyTorch states on disk (see `ttm_jax.training.checkpoint_files`): nothing in them can run code.

`params/` has the weights as safetensors, under the names of the state_dict; `parity.weights` takes them to JAX.
`training/` has the optimiser's state as `torch.load(..., weights_only=True)` reads it.
"""

import io
import json
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from ttm_jax.tasks import config_of_checkpoint
from ttm_jax.training.checkpoint_files import (
    TORCH_FORMAT,
    CheckpointError,
    KeptCheckpoints,
    check_arrays,
    plain_path,
    read_meta,
    unreadable,
    verify,
    write_checkpoint,
)
from ttm_torch.training.step import TrainState

Model = TypeVar("Model", bound=nn.Module)
_WEIGHTS, _TRAINING = "params/model.safetensors", "training/optimizer.pt"


class CheckpointFolder(KeptCheckpoints):
    """The checkpoints of one kind (`LATEST` or `BEST`) in a run folder."""

    def save(self, state: TrainState, meta: dict[str, Any]) -> Path:
        """Write the state and `meta` as the checkpoint of the state's step, unless it is there already.

        Raises:
            CheckpointError: if it cannot be written, as where the disk is full; older ones are as they were.
        """
        training = _training(state) if self.with_training else None
        return self.write(state.step, partial(_write, state.model, meta, training))


def load_meta(path: Path) -> tuple[Any, dict[str, Any]]:
    """Read the config and the other metadata of a checkpoint.

    Raises:
        CheckpointError: if it is not a checkpoint of the twin, or this version does not know its config.
    """
    meta = read_meta(path, TORCH_FORMAT)
    return config_of_checkpoint(path, meta), meta


def save_model(path: Path, model: nn.Module, meta: dict[str, Any]) -> None:
    """Write weights and `meta`, which has the config, as a checkpoint at a path where there is nothing yet."""
    write_checkpoint(path, partial(_write, model, meta, None))


def load_model(path: Path, model: Model) -> Model:
    """Read the weights of a checkpoint into a model, and put it in evaluation mode.

    Raises:
        CheckpointError: if the weights are missing, damaged or not those of the model.
    """
    _load_weights(path, model)
    return model.eval()


def load_state(path: Path, state: TrainState) -> TrainState:
    """Read the whole training state of a checkpoint into a fresh one, to go on from.

    Raises:
        CheckpointError: if the checkpoint holds no training state, or is damaged.
    """
    if not (path / "training").is_dir():
        raise CheckpointError(f"checkpoint {path}: has no training/ to go on from")
    device = next(state.model.parameters()).device
    _load_weights(path, state.model)
    verify(path, "training")
    try:
        content = io.BytesIO((path / _TRAINING).read_bytes())  # of half a file torch.load raises errors of the system
        training = torch.load(content, map_location=device, weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise unreadable(path, "training", error) from error
    try:
        state.optimizer.load_state_dict(training["optimizer"])
        state.scheduler.load_state_dict(training["scheduler"])
        state.carry = training.get("carry", ())  # which checkpoints until version 0.1 don't have
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path}: training/ is of another optimiser: {error}") from error
    return state


def _write(model: nn.Module, meta: dict[str, Any], training: dict[str, Any] | None, path: Path) -> None:
    files = {_WEIGHTS: save(_weights(model)), "meta/metadata": json.dumps({**meta, "format": TORCH_FORMAT}).encode()}
    if training:
        content = io.BytesIO()
        torch.save(training, content)
        files[_TRAINING] = content.getvalue()
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True)
        (path / name).write_bytes(content)


def _training(state: TrainState) -> dict[str, Any]:
    parts = {"optimizer": state.optimizer.state_dict(), "scheduler": state.scheduler.state_dict()}
    return {**parts, "carry": state.carry}


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}


def _load_weights(path: Path, model: nn.Module) -> None:
    verify(path, "params")
    try:
        with plain_path(path) as plain:
            weights = load_file(plain / _WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise unreadable(path, "params", error) from None
    check_arrays(path, "params", _shapes(weights), _shapes(model.state_dict()))
    model.load_state_dict(weights)


def _shapes(tensors: dict[str, Tensor]) -> dict[str, str]:
    return {name: f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}" for name, x in tensors.items()}
