"""A lock that the system releases when the process that holds it ends."""

import os
import pathlib
import sys
from typing import IO

if sys.platform != "win32":
    import fcntl

NAME = "lock"


def lock(folder: pathlib.Path) -> IO[bytes] | None:
    """Lock a folder by a file in it.

    Args:
        folder: Existing folder.

    Returns:
        The open file, which holds the lock until it is closed. `None` if
        another process holds the lock or has removed the folder.

    Raises:
        NotImplementedError: If the system or the file system has no locks.
        OSError: If the file cannot be opened, or is a link.
    """
    path = folder / NAME
    try:
        # It stays open as long as the lock is held.
        file = open(path, "ab", opener=_open_no_link)  # noqa: SIM115
    except FileNotFoundError:
        return None
    try:
        if _acquired(file) and _is_at(path, file):
            return file
    except BaseException:
        file.close()
        raise
    file.close()
    return None


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _acquired(file: IO[bytes]) -> bool:
    """Take the lock if it is free, and return whether it was."""
    if sys.platform == "win32":
        raise NotImplementedError
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # some network file systems
        raise NotImplementedError from error
    return True


def _is_at(path: pathlib.Path, file: IO[bytes]) -> bool:
    """Return whether the locked file is still at its path."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False
