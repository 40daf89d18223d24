"""Files that come with the package: inside it where a wheel was installed, elsewhere in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def shipped(package: Path, inside: str, in_checkout: str) -> Path:
    """A folder by its path in a wheel, seen from the package, or else in the checkout that the package is in."""
    folder = package / inside
    return folder if folder.is_dir() else package.parent / in_checkout
