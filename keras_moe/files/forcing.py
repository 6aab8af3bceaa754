"""Wait until files are on the disk, so that a power loss leaves them whole."""

import errno
import os
import pathlib
import sys

Path = pathlib.Path
# Windows forces only what may be written, and no folders.
_WINDOWS = sys.platform == "win32"
_FLAGS = os.O_RDWR if _WINDOWS else os.O_RDONLY
# Some network file systems cannot force a folder, or may not read one.
_CANNOT = (
    *(errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF),
    *(errno.EACCES, errno.EPERM),
)


def force(path: Path) -> None:
    """Force a file, or a folder with all that it holds, to the disk.

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


def _force_file(path):
    descriptor = os.open(path, _FLAGS)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
