"""What the checkpoints of both twins have in common: where they lie, what `meta/` says, checksums that tell damage.

A checkpoint is a folder with `params/` (weights), `meta/` (JSON: format, config, progress, versions) and, where
training can go on from it, `training/` (optimiser state). It is written under another name and renamed when it is
complete, so a checkpoint is complete or absent; `checksums.json` tells when it was damaged later. A run folder keeps
the latest two in `checkpoints/STEP` and the best in `best/STEP`. Some come with the package, each under its name.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ttm_jax.files import PACKAGE, shipped, user_path

JAX_FORMAT, TORCH_FORMAT = "ttm-multiplier-1", "ttm-multiplier-torch-1"
FORMATS = {"ttm_jax": JAX_FORMAT, "ttm_torch": TORCH_FORMAT}
_PACKAGES = {name: package for package, name in FORMATS.items()}
LATEST, BEST = "checkpoints", "best"
KEPT = {LATEST: 2, BEST: 1}
CHECKSUMS = "checksums.json"


class CheckpointError(ValueError):
    """A checkpoint that is missing, foreign or damaged; the message is one line for the user."""


def find_checkpoint(name: str | Path, kinds: tuple[str, ...] = (BEST, LATEST)) -> Path:
    """Find the checkpoint that a user names; what exists counts before what is shipped.

    Args:
        name: a checkpoint, a folder of them ("runs/quick/best"), a run folder ("runs/quick", "~/runs/quick"), or the
            name of a shipped one ("five_digits").
        kinds: which ones of a run folder are wanted; the newest of the first kind that it has is taken. Shipped ones
            are to be used, as `BEST` is, and are not found among `LATEST` alone.

    Raises:
        CheckpointError: if there is none.
    """
    path = user_path(name).absolute()
    try:
        names = [entry.name for entry in path.iterdir()]
    except FileNotFoundError:
        return _shipped(Path(name), path, kinds)
    except NotADirectoryError:
        names = []  # said below
    except OSError as error:
        raise CheckpointError(f"checkpoint {path}: cannot be read: {error.strerror}") from None
    if {"params", "meta"} <= set(names):
        return path
    for folder in (*(path / kind for kind in kinds if kind in names), path):
        if names and (steps := saved_steps(folder.parent, folder.name)):
            return folder / str(steps[-1])
    raise CheckpointError(
        f"checkpoint {path}: neither a checkpoint (a folder with params/ and meta/) nor a run folder with one"
    )


def _shipped(name: Path, path: Path, kinds: tuple[str, ...]) -> Path:
    """Find a shipped checkpoint by its name, where there is nothing at the path that the name would be."""
    missing = f"checkpoint {path}: no such file or folder"
    if BEST not in kinds or len(name.parts) != 1:
        raise CheckpointError(missing)
    known = {found.parent.name: found.parent for found in shipped(PACKAGE, "checkpoints", "checkpoints").glob("*/meta")}
    if name.name not in known:
        raise CheckpointError(f"{missing}, and none of the shipped ones: {', '.join(sorted(known))}")
    return known[name.name]


def saved_steps(workdir: Path, kind: str) -> list[int]:
    """The steps of a run folder's checkpoints of one kind, in order."""
    folder = workdir / kind
    if not folder.exists():
        return []
    return sorted(int(entry.name) for entry in folder.iterdir() if entry.name.isdigit())


def read_meta(path: Path, wanted: str) -> dict[str, Any]:
    """Read the metadata of a checkpoint of the format `wanted`; "config" is as plain values.

    Raises:
        CheckpointError: if it is of another format, missing or damaged.
    """
    meta = _read_meta(path)
    if (found := meta["format"]) != wanted:
        raise CheckpointError(
            f"checkpoint {path}: written by {_PACKAGES[found]}, where one of {_PACKAGES[wanted]} is wanted; "
            f"python -m parity.convert {path} NEW_FOLDER makes one"
        )
    return meta


def read_format(path: Path) -> str:
    """Which twin wrote a checkpoint: JAX_FORMAT or TORCH_FORMAT.

    Raises:
        CheckpointError: if neither did.
    """
    return _read_meta(path)["format"]


def describe_training(path: Path) -> dict[str, Any]:
    """How a checkpoint of either twin came about: "config", "steps", "examples", "seconds" and "provenance".

    Raises:
        CheckpointError: if neither twin wrote it.
    """
    meta = _read_meta(path)
    progress = {"steps": meta["progress"]["step"], "seconds": meta["progress"]["seconds"]}
    return {**progress, **{key: meta[key] for key in ("examples", "config", "provenance")}}


def _read_meta(path: Path) -> dict[str, Any]:
    verify(path, "meta")
    try:
        meta = json.loads((path / "meta" / "metadata").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"checkpoint {path}: meta/ is missing or damaged") from None
    found = meta.get("format") if isinstance(meta, dict) else None
    if found not in _PACKAGES:
        raise CheckpointError(
            f"checkpoint {path}: not of this library (format {found!r}; known: {', '.join(_PACKAGES)})"
        )
    return meta


def check_arrays(path: Path, item: str, found: Mapping[str, str], wanted: Mapping[str, str]) -> None:
    """Raises CheckpointError where an item's arrays, as text of type and shape by name, are not those wanted."""
    other = [
        f"{name} is {found.get(name, 'not there')}, {wanted.get(name, 'nothing')} wanted"
        for name in sorted(found.keys() | wanted.keys())
        if found.get(name) != wanted.get(name)
    ]
    if other:
        more = f"; and {len(other) - 5} more" if len(other) > 5 else ""
        raise CheckpointError(f"checkpoint {path}: {item}/ is of another model: {'; '.join(other[:5])}{more}")


def write_checksums(path: Path) -> None:
    """Writes the checksums of all files of a checkpoint."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    checksums = {file.relative_to(path).as_posix(): _checksum(file) for file in files}
    temporary = path / f"{CHECKSUMS}.tmp"
    temporary.write_text(json.dumps(checksums, indent=1) + "\n", encoding="utf-8")
    temporary.rename(path / CHECKSUMS)


def verify(path: Path, item: str) -> None:
    """Raises CheckpointError where a file of an item is not what was saved; without checksums nothing is known."""
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
