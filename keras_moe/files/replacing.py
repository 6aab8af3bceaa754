"""Write a file or a folder beside its place, and swap it in once it is whole.

    target.parent/.keras_moe-writing-HASH-TOKEN/    a hidden, locked folder
        lock                                        held while it is written
        new                                         what is being written
        swap, old                                   for the time of the swap
        swap-removed, old-removed                   what is being removed

At every moment `target` is what it was or what was written, also after a power
loss: everything is forced to the disk before it gets that name. The hidden
folder is removed at the end. If the process is killed, the system releases the
lock, and the next write to the same target removes the folder. What the caller
did not write is never removed: it is moved back.
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

from keras_moe.files.exchanging import exchange, undo_interrupted
from keras_moe.files.forcing import force, force_names
from keras_moe.files.locking import NAME as LOCK
from keras_moe.files.locking import lock
from keras_moe.files.place_errors import place_error

Path = pathlib.Path
IsOurs = Callable[[Path], bool]
PREFIX = ".keras_moe-writing-"
NEW, SWAP, OLD = "new", "swap", "old"
# How a rename onto a folder that is not empty fails.
_OCCUPIED = (errno.ENOTEMPTY, errno.EEXIST)


def anything(folder: Path) -> bool:
    """Return that whatever a target held may be removed."""
    return True


@contextlib.contextmanager
def scratch_beside(target: Path, is_ours: IsOurs = anything) -> Iterator[Path]:
    """Make a hidden folder beside `target`, and remove it at the end.

    Args:
        target: Resolved path of what is to be written. Missing parents are
            made.
        is_ours: Function of a folder that was swapped out: whether all of it
            may be removed.

    Raises:
        OSError: If there is no room, or `target` cannot be written; it names
            the place. Errors of libraries for this are replaced.
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


def _make(scratch):
    """Make the hidden folder; return its lock if the system has locks."""
    held = None
    while held is None:  # a process that removes leftovers may be faster
        scratch.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(scratch)
        except NotImplementedError:
            return None
    return held


def swap_in(
    scratch: Path, target: Path, check: Callable[[Path], object]
) -> None:
    """Let the folder `scratch/new` take the place of `target` in one step.

    Args:
        scratch: From `scratch_beside`.
        target: A new folder, an empty one, or one to be replaced.
        check: Function of a folder that raises an error if it must not be
            replaced. It is called before the swap and after it, so that what
            was put there in the meantime is kept.

    Raises:
        OSError: If `target` cannot be replaced. It is as it was.
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
            # If this fails, `scratch_beside` moves the folder back.
            check(swap)
            break
    force_names(target.parent)


def replace_file(new: Path, target: Path) -> None:
    """Let a file take the place of `target`, or of nothing, in one step."""
    force(new)
    with contextlib.suppress(FileNotFoundError):
        _keep_mode(target, new)
    os.replace(new, target)
    force_names(target.parent)


def _keep_mode(old, new):
    """Give `new` the permissions of what it replaces."""
    mode = stat.S_IMODE(old.stat().st_mode)
    with contextlib.suppress(PermissionError):  # a file system without them
        new.chmod(mode)


def _moved(folder, target):
    """Rename a folder, if nothing is at `target` or an empty folder."""
    try:
        os.rename(folder, target)
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        return False
    return True


def remove_leftovers(target: Path, is_ours: IsOurs = anything) -> None:
    """Remove the hidden folders of processes that were killed.

    A folder whose lock is held belongs to a process that still writes. What
    another user put there, and a link, are left alone, and so is everything
    on a file system without locks.
    """
    for scratch in target.parent.glob(f"{_prefix(target)}*"):
        with contextlib.suppress(OSError, NotImplementedError):
            held = lock(scratch) if _is_own_folder(scratch) else None
            if held is not None:
                with held:
                    _discard(scratch, target, is_ours)


def _is_own_folder(path):
    """Return whether a path is a folder of this user, and no link to one."""
    found = os.lstat(path)
    own = found.st_uid == getattr(os, "geteuid", lambda: found.st_uid)()
    return own and stat.S_ISDIR(found.st_mode)


def _prefix(target):
    """The names of hidden folders, short however long the target's name is."""
    digest = hashlib.sha256(os.fsencode(target.name)).hexdigest()
    return f"{PREFIX}{digest[:12]}-"


def _discard(scratch, target, is_ours):
    """Remove a hidden folder, its lock last, and move back what is not ours."""
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
            # With a part of its files it would no longer be known as ours.
            os.rename(folder, scratch / f"{folder.name}-removed")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for entry in scratch.iterdir():
            if entry.name != LOCK:
                _remove(entry)
        shutil.rmtree(scratch, ignore_errors=True)


def _warn_of(folder):
    warnings.warn(
        f"{folder} holds files that keras_moe did not write, and is kept. "
        "Move them, and delete the folder.",
        stacklevel=2,
    )


def _remove(entry):
    if entry.is_dir() and not entry.is_symlink():
        shutil.rmtree(entry, ignore_errors=True)
        if entry.exists():  # an artifact whose folders are read-only
            _make_writable(entry)
            shutil.rmtree(entry, ignore_errors=True)
    else:
        entry.unlink(missing_ok=True)


def _make_writable(folder):
    """Let what is in a folder, and in its folders, be removed."""
    folder.chmod(stat.S_IRWXU)
    for where, names, _ in os.walk(folder):
        for inner in map(Path(where).joinpath, names):
            if not inner.is_symlink():
                inner.chmod(stat.S_IRWXU)


def _remove_empty(folders):
    """Remove folders in which nothing was written, the innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()
