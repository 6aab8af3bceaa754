"""Where an artifact may be written: nothing that is not ours is deleted."""

import os
import pathlib

from keras_moe import checks
from keras_moe.export import manifest as manifests
from keras_moe.files import follow_links

Path = pathlib.Path
# TensorFlow makes it for files of a SavedModel, of which there may be none.
_MAY_BE_EMPTY = "assets"
_MOST = 3  # names in an error


def check_place(path: str | os.PathLike) -> Path:
    """Return the absolute folder to write, with links followed.

    Args:
        path: New folder, an empty one, or the folder of an earlier artifact.

    Raises:
        ValueError: If `path` is a file, the working directory or a parent of
            it, a mount point, or a folder that holds anything else.
    """
    given = checks.check_path("path", path)
    try:
        target = follow_links(given)
    except (OSError, ValueError) as error:
        # A circle of links, or a null byte.
        raise _refused(given, f"which is no path: {error}") from None
    if any(_is_same(target, folder) for folder in _working_directories()):
        raise _refused(given, "the working directory, or a parent of it")
    if os.path.ismount(target):
        # A volume of a container: it cannot be exchanged, only what is in it.
        raise _refused(given, "a mount point: name a new folder inside of it")
    if target.exists():
        check_replaceable(target)
    return target


def check_replaceable(folder: Path) -> None:
    """Raise a ValueError if a folder holds what keras_moe did not write."""
    if not folder.is_dir():
        raise _refused(folder, "a file")
    found = _foreign_in(folder)
    if found:
        raise _refused(folder, f"which holds something else: {found}")


def is_replaceable(folder: Path) -> bool:
    """Return whether keras_moe wrote all that a folder holds."""
    return folder.is_dir() and not _foreign_in(folder)


def _working_directories():
    """Return the working directory and its parents, if there is one."""
    try:
        here = Path.cwd()
    except OSError:  # it was removed
        return ()
    return (here, *here.parents)


def _is_same(a, b):
    """Return whether two paths are one, in other letters on some systems."""
    return a == b or (a.exists() and os.path.samefile(a, b))


def _refused(path, what):
    return ValueError(
        "`path` must be a new folder, an empty one, or that of an earlier "
        "artifact with nothing else in it, and not the working directory. "
        f"Received: {path}, {what}. Nothing was changed: choose another name, "
        "or delete it yourself."
    )


def _foreign_in(folder: Path) -> str | None:
    """Name what a folder holds besides an artifact; None if nothing."""
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


def _unlisted(folder, files, folders, below=""):
    """Yield what lies in a folder and is in no list, any link among it."""
    for entry in sorted((folder / below).iterdir()):
        name, link = f"{below}{entry.name}", entry.is_symlink()
        if entry.is_dir() and name in folders and not link:
            yield from _unlisted(folder, files, folders, f"{name}/")
        elif not entry.is_file() or name not in files or link:
            yield name


def _some(names):
    """Return the first names of many, or None if there are none."""
    names = sorted(names)
    more = ["..."] if len(names) > _MOST else []
    return ", ".join([*names[:_MOST], *more]) or None
