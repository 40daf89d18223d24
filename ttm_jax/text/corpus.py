"""The documents of a corpus, divided into those to train on and those held out. NumPy only."""

import hashlib
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ttm_jax.training.config import ConfigError

STDLIB = "stdlib"
PIECES = 32  # of what is held out of a single file
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "__pycache__"}


@dataclass(frozen=True)
class Document:
    """A text and the name that it has in its corpus."""

    name: str
    data: bytes


@dataclass(frozen=True)
class Corpus:
    """Documents, divided.

    Attributes:
        name: of the corpus, as the user gave it; of "stdlib" with the version of Python.
        training: the documents to train on, in the order of their names.
        held_out: those that training never sees.
        digest: of the names and contents of all, in hexadecimal.
    """

    name: str
    training: tuple[Document, ...]
    held_out: tuple[Document, ...]
    digest: str


def read_corpus(path: str, patterns: Sequence[str], held_out: float) -> Corpus:
    """Read and divide a corpus.

    The hash of a file's name says which side it is on, so that it stays there when others come and go. Of a single
    file the end is held out, in pieces. See `read_documents`.

    Args:
        path: as of `read_documents`.
        patterns: of the names of files in a folder, such as "*.txt".
        held_out: the share that is held out.

    Raises:
        ConfigError: if there is no such path, a file cannot be read, or there is nothing on one of the sides.
    """
    name, documents = read_documents(path, patterns)
    if len(documents) == 1:
        (whole,) = documents
        cut, size = round(len(whole.data) * (1 - held_out)), len(whole.data)
        if not 0 < cut < size:
            raise ConfigError(f"data.path {path}: too short to be divided, with {size} bytes")
        length = -(-(size - cut) // PIECES)
        pieces = [Document(f"from byte {i}", whole.data[i : i + length]) for i in range(cut, size, length)]
        return _corpus(name, [Document("first part", whole.data[:cut])], pieces)
    training = [document for document in documents if _share(document.name) >= held_out]
    others = [document for document in documents if _share(document.name) < held_out]
    if not training or not others:
        side = "to be trained on" if others else "held out"
        raise ConfigError(
            f"data.path {path}: of its {len(documents)} files none is {side}; add files, join them into one, or "
            f"change data.held-out"
        )
    return _corpus(name, training, others)


def read_documents(path: str, patterns: Sequence[str]) -> tuple[str, list[Document]]:
    """Read the documents of a path, and say what it is. Empty files are left out, as are folders that are hidden.

    Args:
        path: a file, a folder, or "stdlib": the sources of this Python, without what is in folders named test or
            tests and what was installed.
        patterns: of the names of files in a folder, such as "*.txt".

    Raises:
        ConfigError: if there is no such path, or no text in it, or a file cannot be read.
    """
    if path == STDLIB:
        folder = Path(sysconfig.get_paths()["stdlib"])
        files = [file for file in _find(folder, ["*.py"]) if not _NOT_STDLIB & set(file.relative_to(folder).parts)]
        return f"{STDLIB} of Python {sys.version.split()[0]}", _read_all(folder, files)
    root = Path(path).expanduser()
    if root.is_dir():
        documents = _read_all(root, _find(root, patterns))
        if not documents:
            raise ConfigError(f"data.path {path}: no file in it matches {', '.join(patterns)} and has text in it")
        return path, documents
    data = _read(root)
    if not data:
        raise ConfigError(f"data.path {path}: an empty file")
    return path, [Document(root.name, data)]


def evenly(documents: Sequence[Document], number: int | None) -> list[Document]:
    """Take so many of the documents, evenly from all; all where None."""
    number = min(len(documents), number or len(documents))
    return [documents[i * len(documents) // number] for i in range(number)]


def _find(folder: Path, patterns: Sequence[str]) -> list[Path]:
    try:
        found = {file for pattern in patterns for file in folder.rglob(pattern) if file.is_file()}
    except (NotImplementedError, ValueError):
        raise ConfigError(f"data.patterns {', '.join(patterns)}: must be patterns of names, such as *.txt") from None
    shown = [file for file in found if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    return sorted(shown, key=lambda file: file.relative_to(folder).as_posix())


def _read_all(folder: Path, files: Iterable[Path]) -> list[Document]:
    documents = [Document(file.relative_to(folder).as_posix(), _read(file)) for file in files]
    return [document for document in documents if document.data]


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"data.path {file}: cannot be read: {error.strerror}") from None


def _share(name: str) -> float:
    """A number in [0, 1) that follows from the name alone."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64


def _corpus(name: str, training: Sequence[Document], held_out: Sequence[Document]) -> Corpus:
    total = hashlib.sha256()
    for side in (training, held_out):
        for document in side:
            for part in (document.name.encode("utf-8", "surrogateescape"), document.data):
                total.update(hashlib.sha256(part).digest())
    return Corpus(name, tuple(training), tuple(held_out), total.hexdigest()[:16])
