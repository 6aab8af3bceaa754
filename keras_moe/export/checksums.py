"""SHA-256 of an artifact's files and of its manifest's own content."""

import hashlib
import json
import pathlib

CHECKSUM = "checksum"


def of_folder(folder: pathlib.Path) -> dict[str, dict]:
    """Return `bytes` and `sha256` of each file of a folder, by relative path.

    Args:
        folder: Folder of an artifact that has just been written.
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
    """Return the SHA-256 of a file, which is read in parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def of_content(manifest: dict) -> str:
    """Return the SHA-256 of a manifest's content, without its own checksum.

    Spaces and the order of keys do not count.
    """
    content = {k: v for k, v in manifest.items() if k != CHECKSUM}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def damage_of(manifest: dict, folder: pathlib.Path) -> str | None:
    """Return what differs between a manifest's list of files and the files.

    Args:
        manifest: Checked against the schema.
        folder: The artifact's folder.

    Returns:
        A sentence about the first file that is missing or differs; `None` if
        all are as they were written. Sizes are compared first.
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
