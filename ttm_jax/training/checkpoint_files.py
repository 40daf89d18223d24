"""What the checkpoints of both twins have in common: where they lie, what `meta/` says, checksums that tell damage.

A checkpoint is a folder with `params/` (weights), `meta/` (JSON: format, config, progress, versions) and, where
training can go on from it, `training/` (optimiser state). It is written under another name and renamed when all of it
has been read back, so a checkpoint is complete or absent; `checksums.json` tells when it was damaged later. A run
folder keeps the latest two in `checkpoints/STEP` and the best in `best/STEP`. Some come with
the package, each under its name.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ttm_jax.files import PACKAGE, shipped, user_path

JAX_FORMAT, TORCH_FORMAT = "ttm-multiplier-1", "ttm-multiplier-torch-1"
FORMATS = {"ttm_jax": JAX_FORMAT, "ttm_torch": TORCH_FORMAT}
_PACKAGES = {name: package for package, name in FORMATS.items()}
LATEST, BEST = "checkpoints", "best"
KEPT = {LATEST: 2, BEST: 1}
CHECKSUMS = "checksums.json"
_MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
_UNFINISHED = (".tmp", ".orbax-checkpoint-tmp")
_PLAIN = re.compile(r"[\w/.,=+@ -]*", re.ASCII)


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
        if {"params", "meta"} <= set(names):
            return path
        for folder in (*(path / kind for kind in kinds if kind in names), path):
            if steps := saved_steps(folder.parent, folder.name):
                return folder / str(steps[-1])
    except FileNotFoundError:
        return _shipped(Path(name), path, kinds)
    except NotADirectoryError:
        pass  # said below
    except OSError as error:
        raise CheckpointError(f"checkpoint {error.filename}: cannot be read: {error.strerror}") from None
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
    except (OSError, ValueError) as error:
        raise unreadable(path, "meta", error) from None
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


class KeptCheckpoints:
    """The checkpoints of one kind (`LATEST` or `BEST`) in a run folder, of which the latest are kept.

    Args:
        workdir: the run folder.
        kind: of the checkpoints.
        leads: whether this process gives checkpoints their names and removes them; of several, one does.

    Raises:
        CheckpointError: if the path is one that nothing could be saved to.
    """

    def __init__(self, workdir: Path, kind: str, leads: bool = True):
        self.path = Path(workdir).absolute() / kind
        self.with_training = kind == LATEST
        self._kind, self._leads = kind, leads
        with plain_path(self.path):
            pass  # said before the first step
        if leads:
            self.path.mkdir(parents=True, exist_ok=True)
            for entry in self.path.iterdir():
                if entry.name.endswith(_UNFINISHED):
                    shutil.rmtree(entry)
            self._keep_latest()

    def write(self, step: int, write: Callable[[Path], None]) -> Path:
        """Have `write` write the checkpoint of a step, unless it is there already.

        Raises:
            CheckpointError: if it cannot be written, as where the disk is full; older ones are as they were.
        """
        path = self.path / str(step)
        if not path.exists():
            write_checkpoint(path, write, self._leads)
            if self._leads:
                self._keep_latest()
        return path

    def _keep_latest(self) -> None:
        for step in saved_steps(self.path.parent, self._kind)[: -KEPT[self._kind]]:
            removed = self.path / f"{step}.tmp"  # half a checkpoint has no checkpoint's name
            (self.path / str(step)).rename(removed)
            shutil.rmtree(removed)


def write_checkpoint(path: Path, write: Callable[[Path], None], leads: bool = True) -> None:
    """Have `write` write a checkpoint under another name; it gets its own when all of its files have been read back.

    Raises:
        CheckpointError: if it cannot be written; what there is of it is removed.
    """
    temporary = path.with_name(re.sub(r"[^\w.-]", "_", path.name, flags=re.ASCII) + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with plain_path(path.parent) as folder:
            write(folder / temporary.name)
        if leads:
            _write_checksums(temporary)
            temporary.rename(path)
    except (OSError, CheckpointError) as error:
        for left in (temporary, temporary.with_name(f"{temporary.name}.orbax-checkpoint-tmp")):
            shutil.rmtree(left, ignore_errors=True)
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"checkpoint {path}: cannot be written: {reason}") from error


@contextmanager
def plain_path(folder: Path) -> Generator[Path]:
    """Give an absolute path to a folder that has no character with a meaning of its own to orbax or tensorstore.

    Orbax looks for the pattern that a path is, tensorstore takes "\\" for "/", and both take "a:/" for a protocol. A
    path of other than plain characters is given as that of a link, which is removed afterwards.

    Raises:
        CheckpointError: if the folder for temporary files has such characters too.
    """
    folder = folder.absolute()
    if _PLAIN.fullmatch(str(folder)):
        yield folder
        return
    with TemporaryDirectory(prefix="ttm-") as links:
        if not _PLAIN.fullmatch(links):
            raise CheckpointError(
                f"{folder}: checkpoints need a path of letters, digits and plain signs, or TMPDIR such a path; "
                f"it is {links}"
            )
        link = Path(links) / "link"
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _write_checksums(path: Path) -> None:
    files = sorted(file for file in path.rglob("*") if file.is_file())
    checksums = {file.relative_to(path).as_posix(): _checksum(file) for file in files}
    (path / CHECKSUMS).write_text(json.dumps(checksums, indent=1) + "\n", encoding="utf-8")


def verify(path: Path, item: str) -> None:
    """Raises CheckpointError where a file of an item is not what was saved; without checksums nothing is known."""
    try:
        found = _damage(path, f"{item}/")
    except OSError as error:
        raise unreadable(path, item, error) from None
    if found is not None:
        raise _damaged(path, found)


def unreadable(path: Path, item: str, error: Exception) -> CheckpointError:
    """Make the error of an item that raised another when it was read.

    It is damaged if the reason is neither the system's, as where a file may not be read, nor are its checksums right.
    """
    if isinstance(error, OSError) and error.errno and not isinstance(error, _MISSING):
        reason = f"cannot be read: {error.filename or item}: {error.strerror}"
    elif not (path / CHECKSUMS).is_file():
        return _damaged(path, f"{item}/ is missing or damaged")
    else:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        reason = f"{item}/ cannot be restored, though its files are whole: {first}"
    return CheckpointError(f"checkpoint {path}: {reason}")


def _damaged(path: Path, what: str) -> CheckpointError:
    """Make the error of a damaged checkpoint; of a run folder's, it says which one is whole and how to use that."""
    run, kind = path.parent.parent, path.parent.name
    kinds = (kind, LATEST) if kind in KEPT else ()
    with suppress(OSError):  # nothing is said of what cannot be read
        others = [run / kind / str(step) for kind in dict.fromkeys(kinds) for step in reversed(saved_steps(run, kind))]
        for other in others:
            if other != path and (other / CHECKSUMS).is_file() and _damage(other, "") is None:
                what += f"; {other} is whole, and is taken once {path} is deleted"
                break
    return CheckpointError(f"checkpoint {path}: {what}")


def _damage(path: Path, prefix: str) -> str | None:
    """What is wrong with the first damaged file of those whose names begin so; None where all are whole.

    Raises:
        OSError: where one cannot be read for another reason than that it is missing.
    """
    try:
        checksums = json.loads((path / CHECKSUMS).read_text(encoding="utf-8"))
        names = [name for name in dict(checksums) if name.startswith(prefix)]
    except FileNotFoundError:
        return None  # of a checkpoint of version 0.1, killed between the two
    except (ValueError, TypeError):
        return f"{CHECKSUMS} is damaged"
    for name in names:
        try:
            found = _checksum(path / name)
        except _MISSING:
            return f"{name} is missing"
        if found != checksums[name]:
            return f"{name} is damaged: its checksum differs"
    return None


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
