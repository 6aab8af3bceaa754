"""Wait until files are on the disk, so that they survive a power loss."""

import errno
import os
import pathlib
import sys

Path = pathlib.Path
# Windows forces only files that are open for writing, and no folders.
_WINDOWS = sys.platform == "win32"
_FLAGS = os.O_RDWR if _WINDOWS else os.O_RDONLY
# Errors of network file systems that cannot force or may not read a folder.
_CANNOT = (
    *(errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF),
    *(errno.EACCES, errno.EPERM),
)


def force(path: Path) -> None:
    """Force a file, or a folder with all of its contents, to the disk.

    Raises:
        OSError: If the disk is full or broken.
    """
    if not path.is_dir():
        _force_file(path)
        return
    for entry in path.iterdir():
        force(entry)
    force_names(path)


def force_names(folder: Path) -> None:
    """Force the list of names in a folder to the disk, not the files."""
    if _WINDOWS:
        return
    try:
        _force_file(folder)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise


def _force_file(path: Path) -> None:
    descriptor = os.open(path, _FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
