"""A case as a file: read without pickle, and checked whole."""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from parity.scenic.names import to_scenic
from parity.scenic.original import ENCODER, build_machine, describe
from ttm_jax.files import shipped


class CaseError(ValueError):
    """A case that cannot be read; the message is one line for the user."""


@dataclass(frozen=True)
class Case:
    """One case as read from its file; `params` and `grads` have the original's names."""

    name: str
    meta: Mapping[str, Any]
    params: Mapping[str, np.ndarray]
    grads: Mapping[str, np.ndarray]
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]


def load_case(path: str | Path) -> Case:
    """Read and check a case, without pickle.

    Raises:
        CaseError: with one line that names the file, what is wrong with it and what would be right.
    """
    path = Path(path)
    try:
        arrays = _read_arrays(path)
        meta = _read_meta(arrays.pop("meta", None))
        _check_arrays(arrays, meta)
    except ValueError as error:
        raise CaseError(f"{path}: {error}") from None
    params, grads, inputs, outputs = (
        {name.removeprefix(group): array for name, array in arrays.items() if name.startswith(group)}
        for group in ("params/", "grads/", "in/", "out/")
    )
    return Case(path.stem, meta, params, grads, inputs, outputs)


def shipped_cases() -> Path:
    """Return the folder of the cases that come with the package."""
    return shipped(Path(__file__).parents[1], "scenic_cases", "tests/data/scenic")


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        exists, is_file = path.exists(), path.is_file()
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from None
    if not exists:
        raise ValueError("no such file; give an .npz file of a case")
    if not is_file:
        raise ValueError("not a file; give the .npz files in it one by one")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (
        AttributeError,  # a single array in place of an archive
        EOFError,
        MemoryError,
        NotImplementedError,
        OSError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ):
        raise ValueError("damaged, or not an .npz file; give a case as numpy.savez writes it") from None


def _read_meta(array: np.ndarray | None) -> dict[str, Any]:
    if array is None:
        raise ValueError("array meta is missing; it is the JSON of the original class and its arguments")
    try:
        meta = json.loads(str(array))
    except json.JSONDecodeError:
        meta = None
    if not isinstance(meta, dict):
        raise ValueError('meta must be a JSON object such as {"cls": "TokenTuringMachineUnit"}')
    build_machine(meta)
    return meta


def _check_arrays(arrays: Mapping[str, np.ndarray], meta: Mapping[str, Any]) -> None:
    """Check that the case has every array that it needs and no other, each float32, finite and of its shape."""
    expected = _expected_shapes(arrays.get("in/tokens"), meta)
    for name, shape in expected.items():
        if name not in arrays:
            raise ValueError(f"array {name} is missing; it must have shape {shape}")
        if arrays[name].shape != shape:
            raise ValueError(f"array {name} must have shape {shape}, got {arrays[name].shape}")
        if arrays[name].dtype != np.float32 or not np.isfinite(arrays[name]).all():
            raise ValueError(f"array {name} must be finite float32 numbers, got {arrays[name].dtype}")
    for name in arrays:
        if name not in expected:
            raise ValueError(f"array {name} is unknown; {describe(meta)} does not have it")


def _expected_shapes(tokens: np.ndarray | None, meta: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array of a case with these input tokens."""
    encoder = meta["cls"] == ENCODER
    axes = "[B, T, N, D]" if encoder else "[B, N, D]"
    if tokens is None:
        raise ValueError(f"array in/tokens is missing; it must be {axes}")
    if tokens.ndim != len(axes.split(",")) or 0 in tokens.shape:
        raise ValueError(f"array in/tokens must be {axes}, got shape {tokens.shape}")
    machine = build_machine(meta)
    *lead, _, width = tokens.shape
    output, memory = (*lead, machine.process_size, width), (*lead, machine.memory_size, width)
    shapes = {"in/tokens": tokens.shape, "in/cot_output": output, "out/output": output}
    if not encoder:
        shapes |= {"in/memory": memory, "in/cot_memory": memory, "out/memory": memory}
    inputs = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (memory, tokens.shape)]
    variables = jax.eval_shape(machine.init, jax.random.key(0), *(inputs[1:] if encoder else inputs))
    for name, leaf in to_scenic(variables["params"], meta).items():
        shapes |= {f"params/{name}": leaf.shape, f"grads/{name}": leaf.shape}
    return shapes
