"""A folder of generations, each written whole or not at all.

    directory/generation-00000004/manifest.json, arrays.npz, process-0.npz
    directory/generation-00000005/...
    directory/writing/...                 one that is not complete

A generation is written beside, its manifest last, forced to the disk and then
renamed, which POSIX does at once or not at all. The manifest holds each file's
size and checksum: what a failing disk tore is known and passed over. Nothing
here imports Keras.
"""

import json
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable

Path = pathlib.Path
MANIFEST = "manifest.json"
WRITING = "writing"
NAME = re.compile(r"generation-(\d{8,})")
CHUNK = 1 << 22


def write(directory: Path, fill: Callable[[Path], dict], keep: int) -> Path:
    """Adds a generation and removes all but the newest `keep`.

    Args:
        directory: of the generations; made where it is missing.
        fill: function `(folder)` that writes the files into `folder` and
            returns what the manifest is to hold besides.
        keep: 1 or more.

    Returns:
        The new generation's folder.

    Raises:
        OSError: where the disk is full or not writable. The earlier
            generations are as they were.
    """
    directory.mkdir(parents=True, exist_ok=True)
    folder = directory / WRITING
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        described = fill(folder)
        files = {p.name: _seal(p) for p in sorted(folder.iterdir())}
        text = json.dumps({**described, "files": files}, indent=1)
        (folder / MANIFEST).write_text(text)
        _force(folder / MANIFEST)
        _force(folder)
        target = directory / f"generation-{_next_number(directory):08d}"
        os.rename(folder, target)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    _force(directory)
    for old in generations(directory)[keep:]:
        remove(old)
    return target


def generations(directory: Path) -> list[Path]:
    """Returns the generations of a folder, the newest first, whole or torn."""
    if not directory.is_dir():
        return []
    found = [p for p in directory.iterdir() if NAME.fullmatch(p.name)]
    return sorted(found, key=_number, reverse=True)


def read_manifest(generation: Path) -> dict:
    """Returns a generation's manifest, where all its files are whole.

    Raises:
        ValueError: that says what is torn.
    """
    try:
        manifest = json.loads((generation / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from error
    for name, (size, checksum) in manifest["files"].items():
        path = generation / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise ValueError(f"{name} has {found} of {size} bytes")
        if _checksum(path) != checksum:
            raise ValueError(f"{name} is not what was written")
    return manifest


def newest_whole(directory: Path) -> tuple[Path | None, list[str]]:
    """Returns the newest whole generation and why newer ones are not."""
    torn = []
    for generation in generations(directory):
        try:
            read_manifest(generation)
        except ValueError as error:
            torn.append(f"{generation.name}: {error}")
            continue
        return generation, torn
    return None, torn


def remove(generation: Path) -> None:
    """Removes a generation; one of which a part is left is a torn one."""
    (generation / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(generation, ignore_errors=True)


def _number(generation):
    return int(NAME.fullmatch(generation.name)[1])


def _next_number(directory):
    return max((_number(g) for g in generations(directory)), default=-1) + 1


def _seal(path):
    """Forces a file to the disk; returns its size and checksum."""
    _force(path)
    return path.stat().st_size, _checksum(path)


def _checksum(path):
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum


def _force(path):
    """Waits until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
