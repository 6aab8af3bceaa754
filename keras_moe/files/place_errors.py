"""Name the place that cannot be written, whatever library failed.

TensorFlow, h5py, and OpenVINO have errors of their own for a full disk.
"""

import contextlib
import errno
import os
import pathlib
import tempfile
from collections.abc import Iterator

Path = pathlib.Path
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT_WRITE = (
    *_FULL,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EBUSY,
    errno.EXDEV,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)
# The report of C++ streams, and therefore of OpenVINO, for any failure.
_OF_STREAMS = "iostream error"
# These errors are raised unchanged, also if there is no room.
_ABOUT_ARGUMENTS = (ValueError, TypeError, ImportError)
_ROOM = 1 << 20  # bytes


def place_error(error: Exception, target: Path) -> OSError | None:
    """Return an OSError that names the place that cannot be written.

    Call it before the incomplete files are removed, since it checks whether
    there is room.

    Args:
        error: Error that was raised while `target` was written.
        target: Path of the file or folder to write.

    Returns:
        An OSError, or `None` if the error has another cause.
    """
    folder: Path = target.parent
    number: int | None
    full = _full_folder(target.parent)
    if full is not None and not isinstance(error, _ABOUT_ARGUMENTS):
        folder, number = full
    elif (
        isinstance(error, OSError)
        and error.errno in _CANNOT_WRITE
        and not _is_elsewhere(error.filename, target)
    ):
        number = error.errno
    else:
        number = _number_in(error)
    if number is None:
        return None
    where = "" if folder == target.parent else f"{folder}: "
    return OSError(
        number,
        "`path` must be a place that can be written. Received: "
        f"{target}: {where}{os.strerror(number)}. Nothing was changed there; "
        "make room or choose another place.",
    )


def _full_folder(folder: Path) -> tuple[Path, int] | None:
    """Return a folder without room and the number of its error, or None.

    The folder of temporary files is checked, too.
    """
    places = [folder]
    # Raised if no folder for temporary files can be written.
    with contextlib.suppress(FileNotFoundError):
        places.append(Path(tempfile.gettempdir()))
    for place in places:
        try:
            with tempfile.TemporaryFile(dir=place) as file:
                file.write(bytes(_ROOM))
        except OSError as error:
            if error.errno in _FULL:
                return place, error.errno
    return None


def _is_elsewhere(name: object, target: Path) -> bool:
    """Return whether an error names a file that is not on the way to target.

    A model's own layers may read files while they are exported.
    """
    if not isinstance(name, (str, bytes)):
        return False
    file = Path(os.fsdecode(name)).absolute()
    return target.parent not in file.parents and file not in target.parents


def _number_in(error: Exception) -> int | None:
    """Return the number of a failed write that an error or a cause tells."""
    for link in _chain(error):
        for number in _FULL:
            if getattr(link, "errno", None) == number:
                return number
            if os.strerror(number) in str(link):
                return number
        if _OF_STREAMS in str(link):
            return errno.EIO
    return None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
