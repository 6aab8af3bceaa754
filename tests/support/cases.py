"""Choose which cases `make test` runs on every backend."""

import pytest

on_one = pytest.mark.one_backend


def cases(names, everywhere):
    """Return names as parameters of a test.

    `make test` runs the names in `everywhere` on each backend, and the others
    on one backend (`one_backend`). `make test-all` runs every case on each
    backend.
    """
    return [
        pytest.param(name, marks=() if name in everywhere else on_one)
        for name in names
    ]
