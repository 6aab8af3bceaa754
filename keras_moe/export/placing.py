"""Check where an artifact may be written, so that no other file is deleted."""

import os
import pathlib
from collections.abc import Iterable, Iterator

from keras_moe import checks
from keras_moe.export import manifest as manifests
from keras_moe.files import follow_links

Path = pathlib.Path
# TensorFlow creates this folder in a SavedModel even if it stays empty.
_MAY_BE_EMPTY = "assets"
_MOST = 3  # the number of names in an error


def check_place(path: str | os.PathLike[str]) -> Path:
    """Return the absolute folder to write, with links followed.

    Args:
        path: New folder, an empty one, or the folder of an earlier artifact.

    Raises:
        ValueError: If `path` is a file, the working directory or a parent of
            it, a mount point, or a folder that contains anything else.
    """
    given = checks.check_path("path", path)
    try:
        target = follow_links(given)
    except (OSError, ValueError) as error:
        # A circle of links, or a null byte.
        raise _refused(given, f"which is not a path: {error}") from None
    if any(_is_same(target, folder) for folder in _working_directories()):
        raise _refused(given, "the working directory, or a parent of it")
    if os.path.ismount(target):
        # A volume of a container cannot be renamed, only what is inside.
        raise _refused(given, "a mount point: name a new folder inside of it")
    if target.exists():
        check_replaceable(target)
    return target


def check_replaceable(folder: Path) -> None:
    """Raise a ValueError unless a folder holds only what keras_moe wrote."""
    if not folder.is_dir():
        raise _refused(folder, "a file")
    found = _foreign_in(folder)
    if found:
        raise _refused(folder, f"which contains something else: {found}")


def is_replaceable(folder: Path) -> bool:
    """Return whether keras_moe wrote everything that a folder contains."""
    return folder.is_dir() and not _foreign_in(folder)


def _working_directories() -> tuple[Path, ...]:
    """Return the working directory, if it exists, and its parents."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        return ()
    return (here, *here.parents)


def _is_same(a: Path, b: Path) -> bool:
    """Return whether two paths are the same, perhaps in another case."""
    return a == b or (a.exists() and os.path.samefile(a, b))


def _refused(path: Path, what: str) -> ValueError:
    return ValueError(
        "`path` must be a new folder, an empty one, or that of an earlier "
        "artifact with nothing else in it, and not the working directory. "
        f"Received: {path}, {what}. Nothing was changed: choose another name, "
        "or delete it yourself."
    )


def _foreign_in(folder: Path) -> str | None:
    """Name what a folder contains besides an artifact; `None` if nothing."""
    names = os.listdir(folder)
    if manifests.NAME not in names:
        return _some(names)
    try:
        manifest = manifests.read(folder)
    except (ValueError, OSError):
        return f"a {manifests.NAME} that is damaged or not of keras_moe"
    files = {*manifests.listed_files(manifest), manifests.NAME}
    folders = {str(p) for name in files for p in Path(name).parents}
    return _some(_unlisted(folder, files, {*folders, _MAY_BE_EMPTY}))


def _unlisted(
    folder: Path, files: set[str], folders: set[str], below: str = ""
) -> Iterator[str]:
    """Yield the paths in a folder that are in no list, and all links."""
    for entry in sorted((folder / below).iterdir()):
        name, link = f"{below}{entry.name}", entry.is_symlink()
        if entry.is_dir() and name in folders and not link:
            yield from _unlisted(folder, files, folders, f"{name}/")
        elif not entry.is_file() or name not in files or link:
            yield name


def _some(names: Iterable[str]) -> str | None:
    """Return the first few names as text, or `None` if there are no names."""
    names = sorted(names)
    more = ["..."] if len(names) > _MOST else []
    return ", ".join([*names[:_MOST], *more]) or None
