"""A folder of generations, each written whole or not at all.

    directory/generation-00000004/manifest.json, arrays.npz, process-0.npz
    directory/generation-00000005/...
    directory/generation-00000006.writing/...      one that is not complete
    directory/generation-00000003.removing/...     one that is being removed

A generation is written beside, its manifest last, forced to the disk and then
renamed, which POSIX does at once or not at all; it is removed in the opposite
order. The manifest holds each file's size and checksum, and a checksum of its
own content, so that whatever a failing disk tore is noticed and passed over.
Nothing here imports Keras.
"""

import contextlib
import errno
import hashlib
import json
import os
import pathlib
import re
import shutil
import zlib
from collections.abc import Callable

from keras_moe.files.forcing import force, force_names

Path = pathlib.Path
MANIFEST = "manifest.json"
CHECKSUM = "checksum"
SCHEMA = 2  # 1 has neither this number nor a checksum
NAME = re.compile(r"generation-(\d{8,})")
LEFT_OVER = re.compile(r"generation-\d{8,}\.(writing|removing)")
CHUNK = 1 << 22
# Errors of a file that is missing, of another kind, shorter than it should be,
# or on a broken disk.
TORN = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.EIO}


def write(directory: Path, fill: Callable[[Path], dict], keep: int) -> Path:
    """Add a generation and remove all but the newest `keep`.

    Args:
        directory: of the generations; made if it is missing.
        fill: function `(folder)` that writes the files into `folder` and
            returns what the manifest is to hold besides.
        keep: 1 or more.

    Returns:
        The new generation's folder.

    Raises:
        OSError: if the disk is full or not writable. The earlier generations
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
    """Return the generations of a folder, the newest first, whole or torn."""
    if not directory.is_dir():
        return []
    found = [p for p in directory.iterdir() if NAME.fullmatch(p.name)]
    folders = [path for path in found if path.is_dir()]
    return sorted(folders, key=_number, reverse=True)


def read_manifest(generation: Path) -> dict:
    """Return a generation's manifest if it and all files are whole.

    A manifest of schema 1 has no checksum: what it holds may be damaged.

    Raises:
        ValueError: that tells what is torn.
        OSError: if the files cannot be read now, for want of permission, say.
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
    directory: Path, check: Callable[[Path, dict], None] | None = None
) -> tuple[Path | None, dict, list[str]]:
    """Return the newest whole generation.

    Args:
        directory: of the generations.
        check: function `(generation, manifest)` that raises a ValueError for a
            generation that is not to be taken for whole either.

    Returns:
        The generation or None, its manifest, and why newer ones are not whole.
    """
    torn = []
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
    """Remove a generation. It is renamed first, so that no part of it is left
    under its name."""
    folder = generation.with_suffix(".removing")
    with _leaving_no_part(generation.parent):
        _delete(folder)
        os.rename(generation, folder)
        _delete(folder)


def clear(directory: Path) -> None:
    """Remove what processes that were killed were writing or removing."""
    if not directory.is_dir():
        return
    for path in list(directory.iterdir()):
        if LEFT_OVER.fullmatch(path.name):
            _delete(path)


@contextlib.contextmanager
def _leaving_no_part(directory):
    """Remove parts of generations after an error or an interrupt."""
    try:
        yield
    except BaseException:
        clear(directory)
        raise


def _fill(folder, fill):
    """Write a generation's files and manifest, and force them to the disk."""
    described = fill(folder)
    files = {path.name: _seal(path) for path in sorted(folder.iterdir())}
    manifest = {"schema": SCHEMA, **described, "files": files}
    manifest[CHECKSUM] = _checksum_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))
    force(folder)


def _parse(data):
    """Return the manifest that a file's bytes hold; a ValueError if torn."""
    try:
        manifest = json.loads(data.decode())
        if not isinstance(manifest, dict):
            raise ValueError("it is not an object")
        if _is_sealed(manifest):
            expected = _checksum_of(manifest)
            if manifest[CHECKSUM] != expected:
                raise ValueError("its content is not what was written")
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    _check_files(manifest.get("files"))
    return manifest


def _is_sealed(manifest):
    """Whether there is a checksum; only schema 1 may have none."""
    if CHECKSUM in manifest:
        return True
    if "schema" in manifest:
        raise ValueError("its checksum is missing")
    return False


def _check_files(files):
    """Raise unless these are names in a folder with sizes and checksums."""
    if not isinstance(files, dict):
        raise ValueError("it lists no files")
    for name, sealed in files.items():
        plain = name not in ("", ".", "..") and not set(name) & {*"/\\\0"}
        numbers = isinstance(sealed, list) and [type(n) for n in sealed]
        if not plain or numbers != [int, int]:
            raise ValueError(f"it lists {name!r} as {sealed!r}"[:200])


def _check_file(path, size, checksum):
    found = path.stat().st_size if path.is_file() else None
    if found != size:
        raise ValueError(f"{path.name} has {found} of {size} bytes")
    if _checksum(path) != checksum:
        raise ValueError(f"{path.name} is not what was written")


def _raise_if_whole(error):
    """Raise an error that does not mean that the file is torn."""
    if error.errno not in TORN:
        raise error


def _number(generation):
    return int(NAME.fullmatch(generation.name)[1])  # type: ignore[index]


def _next_number(directory):
    taken = [p for p in directory.iterdir() if NAME.fullmatch(p.name)]
    return max(map(_number, taken), default=-1) + 1


def _delete(folder):
    shutil.rmtree(folder, ignore_errors=True)


def _checksum_of(manifest):
    """Return the SHA-256 of all that a manifest holds but the checksum."""
    content = {k: v for k, v in manifest.items() if k != CHECKSUM}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _seal(path):
    """Return a file's size and checksum."""
    return [path.stat().st_size, _checksum(path)]


def _checksum(path):
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
