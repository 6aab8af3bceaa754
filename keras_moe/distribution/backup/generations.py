"""Write and read generations, each written completely or not at all.

    directory/generation-00000004/manifest.json, arrays.npz, process-0.npz
    directory/generation-00000005/...
    directory/generation-00000006.writing/...      incomplete
    directory/generation-00000003.removing/...     being removed

A generation is written under another name, the manifest last. It is forced to
the disk and then renamed, which POSIX does atomically. It is removed in the
opposite order. The manifest contains the size and checksum of each file and a
checksum of its own content, so that damage is detected. This module does not
import Keras.
"""

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from keras_moe.files.content_checksum import CHECKSUM, checksum_of_content
from keras_moe.files.forcing import force, force_names

Path = pathlib.Path
MANIFEST = "manifest.json"
SCHEMA = 2  # schema 1 has neither this number nor a checksum
NAME = re.compile(r"generation-(\d{8,})")
LEFT_OVER = re.compile(r"generation-\d{8,}\.(writing|removing)")
CHUNK = 1 << 22
# The errors of a file that is missing, of another type, too short, or on a
# broken disk.
TORN = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EIO}


def write(
    directory: Path, fill: Callable[[Path], dict[str, Any]], keep: int
) -> Path:
    """Add a generation, and remove all but the newest `keep`.

    Args:
        directory: Folder of the generations. It is made if it is missing.
        fill: Function of the generation's folder that writes files into it and
            returns the other entries of the manifest.
        keep: Number of generations to keep, 1 or more.

    Returns:
        The folder of the new generation.

    Raises:
        OSError: If the disk is full or not writable. The earlier generations
            are unchanged.
    """
    directory.mkdir(parents=True, exist_ok=True)
    clear(directory)
    with _leaving_no_part(directory):
        target = directory / f"generation-{_next_number(directory):08d}"
        folder = target.with_suffix(".writing")
        folder.mkdir()
        _fill(folder, fill)
        os.rename(folder, target)
        force_names(directory)
        for old in generations(directory)[keep:]:
            remove(old)
    return target


def generations(directory: Path) -> list[Path]:
    """Return all generations of a folder, damaged or not, the newest first."""
    if not directory.is_dir():
        return []
    found = [p for p in directory.iterdir() if NAME.fullmatch(p.name)]
    folders = [path for path in found if path.is_dir()]
    return sorted(folders, key=_number, reverse=True)


def read_manifest(generation: Path) -> dict[str, Any]:
    """Return the manifest of a generation, after a check of all files.

    A manifest of schema 1 has no checksum, so its content may be damaged.

    Raises:
        ValueError: If the manifest or a file is damaged. The message names it.
        OSError: If a file cannot be read for another reason, such as missing
            permission.
    """
    try:
        manifest = _parse((generation / MANIFEST).read_bytes())
    except ValueError as error:
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from error
    except OSError as error:
        _raise_if_whole(error)
        raise ValueError(f"{MANIFEST} cannot be read: {error}") from error
    for name, sealed in manifest["files"].items():
        try:
            _check_file(generation / name, *sealed)
        except OSError as error:
            _raise_if_whole(error)
            raise ValueError(f"{name} cannot be read: {error}") from error
    return manifest


def newest_whole(
    directory: Path,
    check: Callable[[Path, dict[str, Any]], None] | None = None,
) -> tuple[Path | None, dict[str, Any], list[str]]:
    """Return the newest undamaged generation.

    Args:
        directory: Folder of the generations.
        check: Function of a generation and its manifest that raises a
            ValueError if the generation must be skipped, too. `None` (the
            default) skips only damaged ones.

    Returns:
        The generation or `None`, its manifest, and a list of messages about
        the newer generations that were skipped.
    """
    torn: list[str] = []
    for generation in generations(directory):
        try:
            manifest = read_manifest(generation)
            if check is not None:
                check(generation, manifest)
        except ValueError as error:
            torn.append(f"{generation.name}: {error}")
            continue
        return generation, manifest, torn
    return None, {}, torn


def remove(generation: Path) -> None:
    """Remove a generation.

    It is renamed first, so that no incomplete generation has its name.
    """
    folder = generation.with_suffix(".removing")
    with _leaving_no_part(generation.parent):
        _delete(folder)
        os.rename(generation, folder)
        _delete(folder)


def clear(directory: Path) -> None:
    """Remove what killed processes were writing or removing."""
    if not directory.is_dir():
        return
    for path in list(directory.iterdir()):
        if LEFT_OVER.fullmatch(path.name):
            _delete(path)


@contextlib.contextmanager
def _leaving_no_part(directory: Path) -> Iterator[None]:
    """Remove parts of generations after an error or an interrupt."""
    try:
        yield
    except BaseException:
        clear(directory)
        raise


def _fill(folder: Path, fill: Callable[[Path], dict[str, Any]]) -> None:
    """Write a generation's files and manifest, and force them to the disk."""
    described = fill(folder)
    files = {path.name: _seal(path) for path in sorted(folder.iterdir())}
    manifest = {"schema": SCHEMA, **described, "files": files}
    manifest[CHECKSUM] = checksum_of_content(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    force(folder)


def _parse(data: bytes) -> dict[str, Any]:
    """Return the manifest in a file's bytes; raise a ValueError if damaged."""
    try:
        manifest: dict[str, Any] = json.loads(data.decode())
        if not isinstance(manifest, dict):
            raise ValueError("it is not an object")
        if _is_sealed(manifest):
            expected = checksum_of_content(manifest)
            if manifest[CHECKSUM] != expected:
                raise ValueError("its content is not what was written")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_files(manifest.get("files"))
    return manifest


def _is_sealed(manifest: dict[str, Any]) -> bool:
    """Return whether there is a checksum, which only schema 1 may lack."""
    if CHECKSUM in manifest:
        return True
    if "schema" in manifest:
        raise ValueError("its checksum is missing")
    return False


def _check_files(files: Any) -> None:
    """Raise unless `files` has names in a folder, with sizes and checksums."""
    if not isinstance(files, dict):
        raise ValueError("it lists no files")
    for name, sealed in files.items():
        plain = name not in ("", ".", "..") and not set(name) & {*"/\\\0"}
        numbers = isinstance(sealed, list) and [type(n) for n in sealed]
        if not plain or numbers != [int, int]:
            raise ValueError(f"it lists {name!r} as {sealed!r}"[:200])


def _check_file(path: Path, size: int, checksum: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        raise ValueError(f"{path.name} has {found} of {size} bytes")
    if _checksum(path) != checksum:
        raise ValueError(f"{path.name} is not what was written")


def _raise_if_whole(error: OSError) -> None:
    """Raise an error unless it means that the file is damaged."""
    if error.errno not in TORN:
        raise error


def _number(generation: Path) -> int:
    return int(generation.name.removeprefix("generation-"))


def _next_number(directory: Path) -> int:
    taken = [p for p in directory.iterdir() if NAME.fullmatch(p.name)]
    return max(map(_number, taken), default=-1) + 1


def _delete(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _seal(path: Path) -> list[int]:
    """Return the size and checksum of a file."""
    return [path.stat().st_size, _checksum(path)]


def _checksum(path: Path) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
