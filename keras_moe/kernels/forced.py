"""The forced formulation, and what else a traced program depends on."""

import contextlib
from collections.abc import Hashable, Iterator

import keras

_forced: list[str] = []


def forced() -> str | None:
    """Return the name of the formulation that is forced now, or None."""
    return _forced[-1] if _forced else None


def is_reference() -> bool:
    """Return whether `use("reference")` is in effect."""
    return forced() == "reference"


@contextlib.contextmanager
def forcing(name: str) -> Iterator[None]:
    """Force a formulation inside the `with` block; the name is not checked."""
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def context() -> tuple[Hashable, ...]:
    """Return what a traced program depends on besides its function.

    These are the forced formulation, `keras.distribution`, and the floatx.
    """
    distribution = keras.distribution.distribution()
    return tuple(_forced), distribution, keras.config.floatx()
