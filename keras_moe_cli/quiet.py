"""While a command works: backends keep still, what the package says is kept."""

import atexit
import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from keras_moe.cli.errors import CliError
from keras_moe.cli.plain import printable

# For as long as the process lives: loggers keep hold of it.
_NOWHERE = open(os.devnull, "w")
atexit.register(_NOWHERE.close)


class _Line(logging.Formatter):
    """A record in one line."""

    def format(self, record):
        return printable(super().format(record))


@contextlib.contextmanager
def working(
    debug: bool = False, modules: list[str] | None = None
) -> Iterator[None]:
    """Silences libraries; the package's log and warnings go to stderr.

    Args:
        debug: let everything be heard, on stderr.
        modules: to import first, from the current folder too: they register
            classes that a model is made of.
    """
    stderr = sys.stderr
    elsewhere = stderr if debug else _NOWHERE
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(elsewhere))
        stack.enter_context(contextlib.redirect_stderr(elsewhere))
        stack.enter_context(_heard(stderr, debug))
        for name in modules or ():
            _import(name)
        yield


@contextlib.contextmanager
def _heard(stderr, debug) -> Iterator[None]:
    """Writes the package's own log and warnings, a line each."""
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(_Line("keras-moe: %(message)s"))
    log = logging.getLogger("keras_moe")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            _tell_warnings(stderr, debug)
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _tell_warnings(stderr, debug):
    """The package's warnings by their text: their place is the caller's."""
    for start in ("No input reached the experts", "The artifact in"):
        warnings.filterwarnings("always", message=start)
    if debug:
        return

    def show(message, *args, **kwargs):
        print(f"keras-moe: warning: {printable(str(message))}", file=stderr)

    warnings.showwarning = show


def _import(name):
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
    except Exception as error:
        raise CliError(
            "`--module` must name a module that can be imported. Received: "
            f"{name}: {error!r}. Run the command in the folder that it lies "
            "in, or set PYTHONPATH."
        ) from error
