"""Follow links, and refuse circles of them."""

import errno
import os
from pathlib import Path


def follow_links(path: Path) -> Path:
    """Return the absolute path, with links followed.

    Raises:
        OSError: If there is a circle of links, which `Path.resolve` returns
            unchanged from Python 3.13 on.
        ValueError: If the path contains a null byte.
    """
    try:
        resolved = path.resolve()
    except RuntimeError as error:
        raise _circle(path) from error
    if any(place.is_symlink() for place in (resolved, *resolved.parents)):
        raise _circle(path)
    return resolved


def _circle(path: Path) -> OSError:
    return OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
