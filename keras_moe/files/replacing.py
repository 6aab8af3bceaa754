"""Write a file or folder beside its place, and swap it in when it is complete.

    target.parent/.keras_moe-writing-HASH-TOKEN/    a hidden, locked folder
        lock                                        locked while writing
        new                                         the new file or folder
        swap, old                                   used during the swap
        swap-removed, old-removed                   folders being removed

At every moment `target` is the old or the new version, also after a power loss:
everything is forced to the disk before it gets that name. The hidden folder is
removed at the end. If the process is killed, the system releases the lock, and
the next write to the same target removes the folder. Files that the caller did
not write are never removed: they are moved back.
"""

import contextlib
import errno
import hashlib
import os
import pathlib
import secrets
import shutil
import stat
import warnings
from collections.abc import Callable, Iterator
from typing import IO

from keras_moe.files.exchanging import exchange, undo_interrupted
from keras_moe.files.forcing import force, force_names
from keras_moe.files.locking import NAME as LOCK
from keras_moe.files.locking import lock
from keras_moe.files.place_errors import place_error

Path = pathlib.Path
IsOurs = Callable[[Path], bool]
PREFIX = ".keras_moe-writing-"
NEW, SWAP, OLD = "new", "swap", "old"
# Errors of a rename onto a folder that is not empty.
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)


def anything(folder: Path) -> bool:
    """Return True: whatever a target held may be removed."""
    return True


@contextlib.contextmanager
def scratch_beside(target: Path, is_ours: IsOurs = anything) -> Iterator[Path]:
    """Make a hidden folder beside `target`, and remove it at the end.

    Args:
        target: Resolved path of the file or folder to write. Missing parents
            are made.
        is_ours: Function that returns whether a folder that was swapped out
            may be removed with all of its contents. Defaults to `anything`:
            every folder may.

    Yields:
        The path of the hidden folder.

    Raises:
        OSError: If there is no room, or if `target` cannot be written. It
            names the place, and replaces the errors of libraries.
    """
    scratch = target.parent / f"{_prefix(target)}{secrets.token_hex(8)}"
    missing = [folder for folder in target.parents if not folder.exists()]
    held = None
    try:
        try:
            remove_leftovers(target, is_ours)
            held = _make(scratch)
            yield scratch
        except Exception as error:
            named = place_error(error, target)
            if named is None:
                raise
            raise named from error
        finally:
            _discard(scratch, target, is_ours)
    finally:
        # Again, in case an interrupt came in between.
        _discard(scratch, target, is_ours)
        if held is not None:
            held.close()
        _remove_empty(missing)
    remove_leftovers(target, is_ours)


def _make(scratch: Path) -> IO[bytes] | None:
    """Make the hidden folder, and return its lock if the system has locks."""
    held = None
    while held is None:  # another process may remove the folder as a leftover
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(scratch)
        except NotImplementedError:
            return None
    return held


def swap_in(
    scratch: Path, target: Path, check: Callable[[Path], object]
) -> None:
    """Replace the folder `target` by `scratch/new` in one step.

    Args:
        scratch: Folder from `scratch_beside`.
        target: Path of a new folder, an empty folder, or a folder to replace.
        check: Function that raises an error if a folder must not be replaced.
            It is called before the swap and after it, so that files that were
            put there in the meantime are kept.

    Raises:
        OSError: If `target` cannot be replaced. It is unchanged then.
    """
    swap = scratch / SWAP
    force(scratch / NEW)
    os.rename(scratch / NEW, swap)
    while not _moved(swap, target):
        check(target)
        try:
            _keep_mode(target, swap)
            exchange(swap, target, scratch / OLD)
        except FileNotFoundError:  # was `target` removed?
            if target.exists():
                raise
        else:
            # If this raises, `scratch_beside` moves the folder back.
            check(swap)
            break
    force_names(target.parent)


def replace_file(new: Path, target: Path) -> None:
    """Move a file to `target` in one step, in place of a file if there is one.

    Args:
        new: Path of the complete file, on the file system of `target`.
        target: Path of the file to make or replace.

    Raises:
        OSError: If `target` cannot be replaced. It is unchanged then.
    """
    force(new)
    with contextlib.suppress(FileNotFoundError):
        _keep_mode(target, new)
    os.replace(new, target)
    force_names(target.parent)


def _keep_mode(old: Path, new: Path) -> None:
    """Give `new` the permissions of the file or folder that it replaces."""
    mode = stat.S_IMODE(old.stat().st_mode)
    with contextlib.suppress(PermissionError):  # a file system without them
        new.chmod(mode)


def _moved(folder: Path, target: Path) -> bool:
    """Rename a folder if `target` is free or an empty folder.

    Returns whether it was renamed.
    """
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        return False
    return True


def remove_leftovers(target: Path, is_ours: IsOurs = anything) -> None:
    """Remove the hidden folders of processes that were killed.

    A folder whose lock is held belongs to a process that still writes, and is
    kept. Folders of another user, links, and all folders on a file system
    without locks are kept, too.

    Args:
        target: Resolved path of the file or folder that was to be written.
        is_ours: Function that returns whether a folder that was swapped out
            may be removed with all of its contents. Defaults to `anything`.
    """
    for scratch in target.parent.glob(f"{_prefix(target)}*"):
        with contextlib.suppress(OSError, NotImplementedError):
            held = lock(scratch) if _is_own_folder(scratch) else None
            if held is not None:
                with held:
                    _discard(scratch, target, is_ours)


def _is_own_folder(path: Path) -> bool:
    """Return whether a path is a folder of this user, and no link."""
    found = os.lstat(path)
    own = found.st_uid == getattr(os, "geteuid", lambda: found.st_uid)()
    return own and stat.S_ISDIR(found.st_mode)


def _prefix(target: Path) -> str:
    """Return the start of the hidden folders' names, short for any target."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return f"{PREFIX}{digest[:12]}-"


def _discard(scratch: Path, target: Path, is_ours: IsOurs) -> None:
    """Remove a hidden folder, its lock last, and move back others' files."""
    swap, old = scratch / SWAP, scratch / OLD
    undo_interrupted(old, target)
    if swap.exists() and not is_ours(swap):
        if target.exists() and is_ours(target):
            exchange(swap, target, old)
    for folder in (swap, old):
        if folder.exists():
            if not is_ours(folder):
                _warn_of(folder)
                return
            # With a part of its files, `is_ours` would no longer accept it.
            os.rename(folder, scratch / f"{folder.name}-removed")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in scratch.iterdir():
            if entry.name != LOCK:
                _remove(entry)
        shutil.rmtree(scratch, ignore_errors=True)


def _warn_of(folder: Path) -> None:
    warnings.warn(
        f"{folder} holds files that keras_moe did not write, and is kept. "
        "Move them, and delete the folder.",
        stacklevel=2,
    )


def _remove(entry: Path) -> None:
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
        if entry.exists():  # an artifact whose folders are read-only
            _make_writable(entry)
            shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _make_writable(folder: Path) -> None:
    """Make a folder and all folders in it writable, for removal."""
    folder.chmod(stat.S_IRWXU)
    for where, names, _ in os.walk(folder):
        for inner in map(Path(where).joinpath, names):
            if not inner.is_symlink():
                inner.chmod(stat.S_IRWXU)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that are empty, the innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
