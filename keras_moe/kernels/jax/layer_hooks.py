"""JAX: what is traced, and what may leave it."""

from typing import Any

import jax
from jax.extend.core import get_opaque_trace_state

from keras_moe.types import Tensor


def trace_here() -> Any:
    """It holds the trace weakly."""
    return get_opaque_trace_state()


def is_traced_here(value: Tensor) -> bool:
    """By the private attributes with which JAX 0.10 compares traces."""
    trace = getattr(value, "_trace", None)
    return trace is not None and trace is trace_here()._trace_ref()


def writes_leave_traces() -> bool:
    """The new value itself has to come out."""
    return False


def outside_of_traces():
    """A constant is computed at once."""
    return jax.ensure_compile_time_eval()
