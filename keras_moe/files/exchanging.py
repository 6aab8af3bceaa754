"""Exchange the names of two folders, in one step if the system can."""

import ctypes
import errno
import os
import pathlib
import sys

Path = pathlib.Path
# Constants of Linux's renameat2 and of macOS's renamex_np.
_AT_FDCWD, _RENAME_EXCHANGE, _RENAME_SWAP = -100, 2, 2
# Errors if the kernel, the C library, or the file system cannot exchange.
_CANNOT = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


def exchange(a: Path, b: Path, spare: Path) -> None:
    """Exchange the names of two folders of one file system.

    This is one step on Linux and macOS. Elsewhere, and on file systems that
    cannot exchange names, it takes three renames. If the process is killed
    between them, `b` is at `spare`, and `undo_interrupted` moves it back.

    Args:
        a: Existing folder.
        b: Existing folder on the same file system.
        spare: Free path on the same file system.

    Raises:
        OSError: If a rename fails. Both folders keep their names then.
    """
    try:
        _exchange_at_once(a, b)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        _exchange_in_steps(a, b, spare)


def undo_interrupted(spare: Path, target: Path) -> None:
    """Move a folder back that an interrupted `exchange` left at `spare`."""
    if spare.exists() and not target.exists():
        os.rename(spare, target)


def _exchange_at_once(a: Path, b: Path) -> None:
    if sys.platform == "win32":
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(a), os.fsencode(b)
    try:
        if sys.platform == "darwin":
            failed = library.renamex_np(*names, _RENAME_SWAP)
        else:
            failed = library.renameat2(
                _AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE
            )
    except AttributeError:  # an older C library
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS)) from None
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(a), None, str(b))


def _exchange_in_steps(a: Path, b: Path, spare: Path) -> None:
    os.rename(b, spare)
    try:
        os.rename(a, b)
    except BaseException:
        undo_interrupted(spare, b)
        raise
    os.rename(spare, a)
