"""JAX: which values may leave a trace."""

import contextlib
from typing import Any

import jax


def writes_leave_traces() -> bool:
    """Return False: a traced function must return the new value."""
    return False


def outside_of_traces() -> contextlib.AbstractContextManager[Any]:
    """Return a context in which constants are computed immediately."""
    return jax.ensure_compile_time_eval()
