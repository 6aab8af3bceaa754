"""Silence libraries during a command, but keep keras_moe's own messages."""

import atexit
import contextlib
import importlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import Any, TextIO

from keras_moe_cli.cli_errors import CliError
from keras_moe_cli.printable import printable

# Open until the process ends, because loggers keep a reference.
_NOWHERE = open(os.devnull, "w")
atexit.register(_NOWHERE.close)
# The first words of keras_moe's warnings that the command shows.
SHOWN_WARNINGS = "No input reached the experts", "The artifact in"


class _OneLine(logging.Formatter):
    """Format a log record as one line."""

    def format(self, record: logging.LogRecord) -> str:
        return str(printable(super().format(record)))


@contextlib.contextmanager
def working(
    debug: bool = False, modules: list[str] | None = None
) -> Iterator[None]:
    """Silence libraries; write keras_moe's log and warnings to stderr.

    Args:
        debug: Whether to write the libraries' output to stderr, too. Default:
            `False`.
        modules: Names of modules to import first, also from the current
            folder, which register a model's custom classes. Default: none.
    """
    stderr = sys.stderr
    elsewhere = stderr if debug else _NOWHERE
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(elsewhere))
        stack.enter_context(contextlib.redirect_stderr(elsewhere))
        stack.enter_context(_messages_on(stderr, debug))
        for name in modules or ():
            _import(name)
        yield


@contextlib.contextmanager
def _messages_on(stderr: TextIO, debug: bool) -> Iterator[None]:
    """Write keras_moe's log and warnings, one line each."""
    handler = logging.StreamHandler(stderr)
    handler.setFormatter(_OneLine("keras-moe: %(message)s"))
    log = logging.getLogger("keras_moe")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("ignore")
            _show_warnings(stderr, debug)
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


def _show_warnings(stderr: TextIO, debug: bool) -> None:
    """Show keras_moe's warnings, selected by their text.

    A filter by module cannot select them, because their `stacklevel` sets the
    module of a caller.
    """
    for start in SHOWN_WARNINGS:
        warnings.filterwarnings("always", message=start)
    if debug:
        return

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        print(f"keras-moe: warning: {printable(str(message))}", file=stderr)

    warnings.showwarning = show


def _import(name: str) -> None:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        importlib.import_module(name)
    except Exception as error:
        raise CliError(
            "`--module` must name a module that can be imported. Received: "
            f"{name}: {error!r}. Run the command in the folder of the module, "
            "or set PYTHONPATH."
        ) from error
