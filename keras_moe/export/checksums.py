"""Compute and compare the SHA-256 of an artifact's files."""

import hashlib
import pathlib
from typing import Any


def of_folder(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Return the size and SHA-256 of each file of a folder.

    Args:
        folder: Folder of an artifact that has just been written.

    Returns:
        Dict from the relative path of each file to a dict of its `bytes` and
        `sha256`.
    """
    return {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": of_file(path),
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def of_file(path: pathlib.Path) -> str:
    """Return the SHA-256 of a file without reading it into memory at once."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage_of(manifest: dict[str, Any], folder: pathlib.Path) -> str | None:
    """Return how an artifact's files differ from its manifest's list of files.

    Sizes are compared first, because that is cheaper.

    Args:
        manifest: Manifest that the schema accepts.
        folder: The artifact's folder.

    Returns:
        Description of the first file that is missing or differs; `None` if all
        files are unchanged.
    """
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != entry["bytes"]:
            return f"{name} has {size} bytes instead of {entry['bytes']}"
    for name, entry in manifest["files"].items():
        if of_file(folder / name) != entry["sha256"]:
            return f"the SHA-256 of {name} differs"
    return None
