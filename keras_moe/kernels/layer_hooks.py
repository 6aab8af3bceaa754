"""Calls, losses, state, and Adam steps of layers, as the backend needs them."""

from typing import Any

import keras

from keras_moe.kernels.backend import backend
from keras_moe.types import Tensor

# The running backend's functions, which `protocol/` describes.
adam_step = backend.adam_step
first_value = backend.first_value
is_recomputing = backend.is_recomputing
is_traced_here = backend.is_traced_here
keep_losses_apart = backend.keep_losses_apart
may_be_repeated = backend.may_be_repeated
repeatable = backend.repeatable
settle = backend.settle
trace_here = backend.trace_here
writes_leave_traces = backend.writes_leave_traces


def call_part(
    owner: keras.layers.Layer,
    layer: keras.layers.Layer,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Call a layer from inside the layer that owns it.

    `layer(...)` searches its arguments and outputs for tensors to convert, to
    mask, or to regularize. A compiled program does not contain this search,
    but on PyTorch it runs in every call. So there `layer.call(...)` is called
    instead, if `layer(...)` would do nothing else.

    Args:
        owner: Layer whose `call` is running.
        layer: Layer to call.
        *args, **kwargs: Arguments of `layer`. The call of `owner` has
            converted them to tensors.

    Returns:
        The outputs of `layer`.
    """
    if backend.needs_a_full_call(owner, layer):
        return layer(*args, **kwargs)
    return layer.call(*args, **kwargs)


def assign_once(variable: keras.Variable, value: Tensor) -> None:
    """Assign a value, unless the forward pass is being repeated.

    Args:
        variable: State of a layer, read by `first_value`.
        value: The new value.
    """
    if not is_recomputing():
        variable.assign(value)


def untraced_zero() -> Tensor:
    """Return a scalar zero in the floatx that may be used in any trace."""
    with backend.outside_of_traces():
        return keras.ops.zeros((), keras.config.floatx())
