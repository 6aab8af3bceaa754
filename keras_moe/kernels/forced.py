"""What `kernels.use` forces, and what else a traced program depends on."""

import contextlib
from collections.abc import Iterator

import keras

_forced: list[str] = []


def forced() -> str | None:
    """Return the name of the formulation that is forced now."""
    return _forced[-1] if _forced else None


def is_reference() -> bool:
    """Return whether `use("reference")` is in effect."""
    return forced() == "reference"


@contextlib.contextmanager
def forcing(name: str) -> Iterator[None]:
    """Force a formulation, of any name, inside the `with`."""
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def context() -> tuple:
    """Return what a traced program depends on beside its function: the forced
    formulation, `keras.distribution`, and the floatx."""
    distribution = keras.distribution.distribution()
    return tuple(_forced), distribution, keras.config.floatx()
