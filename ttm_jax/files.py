"""Files that come with the package, whether in an installed wheel or in a checkout; and JSON files."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parent


class FileError(ValueError):
    """A file or folder that cannot be used; the message is one line for the user."""


def user_path(name: str | Path) -> Path:
    """Give the path that a user names, "~" as the home folder; where no user is called so it is a name as any."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def shipped(package: Path, inside: str, in_checkout: str) -> Path:
    """Find a folder: by its path inside the package, as in a wheel, or else in the checkout that the package is in."""
    folder = package / inside
    return folder if folder.is_dir() else package.parent / in_checkout


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Raises FileError, naming the file, in place of the OSErrors of what is done with it."""
    try:
        yield
    except OSError as error:
        raise FileError(f"{path}: {error.strerror}") from None


def read_json(path: Path) -> Any:
    """Read a file of JSON.

    Raises:
        FileError: if it cannot be read, or is not JSON.
    """
    with naming(path):
        text = path.read_bytes()
    try:
        return json.loads(text)
    except ValueError:
        raise FileError(f"{path}: not JSON; move it away to begin anew") from None


def write_json(path: Path, values: Any) -> None:
    """Write a file of JSON, in a folder that is made where needed; a reader never sees half of it.

    Raises:
        FileError: if it cannot be written.
    """
    temporary = path.with_suffix(".tmp")
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)
