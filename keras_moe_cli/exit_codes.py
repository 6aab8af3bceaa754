"""Define the exit codes of the command, and exit with one line on stderr.

This file must not import Keras.
"""

import sys
from typing import NoReturn

DONE, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130


def fail(message: str, code: int = FAILED) -> NoReturn:
    """Write one line to stderr and exit."""
    print(f"keras-moe: {message}", file=sys.stderr)
    sys.exit(code)
