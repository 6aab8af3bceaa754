"""What a backend does to layers and variables: calls, losses, state, Adam."""

from typing import Any

import keras

from keras_moe.kernels.backend import backend
from keras_moe.types import Tensor

# As the backend has them; `protocol.py` says what they do.
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
    """Calls a layer from inside the layer that owns it, `layer(...)`.

    A call of Keras looks through its arguments and outputs for what to
    convert, to mask or to regularise: nothing to a compiled program, and up
    to half a millisecond on PyTorch. There it is `layer.call(...)` where that
    is all that would happen.

    Args:
        owner: a layer in whose `call` this is.
        layer: what is called.
        *args, **kwargs: what the owner's call has converted to tensors.
    """
    if backend.needs_a_full_call(owner, layer):
        return layer(*args, **kwargs)
    return layer.call(*args, **kwargs)


def assign_once(variable: keras.Variable, value: Tensor) -> None:
    """Assigns a value, unless the forward pass is repeated.

    Args:
        variable: state of a layer, read by `first_value`.
        value: the new value.
    """
    if not is_recomputing():
        variable.assign(value)


def untraced_zero() -> Tensor:
    """Returns a scalar zero in the floatx that may be used in any trace."""
    with backend.outside_of_traces():
        return keras.ops.zeros((), keras.config.floatx())
