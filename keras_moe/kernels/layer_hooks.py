"""What a backend does to layers and variables: losses, calls, state, Adam.

Where a backend has a way of its own, a function stands in
`jax_primitives.py`, `tensorflow_primitives.py` or `torch_primitives.py`.
"""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_moe.kernels.primitives import twin
from keras_moe.types import Tensor


def keep_losses_apart(layer: keras.layers.Layer) -> None:
    """Gives each replica of a process its own list of a layer's losses.

    Under a `tf.distribute` strategy the replicas of a process trace a step as
    threads that take turns at every reduction, and share what stands on a
    layer. In Keras 3.15 that is the list behind `add_loss`: a replica that
    enters the model clears what another has added before, and the gradient of
    it is lost. Elsewhere nothing happens, nor a second time.

    Args:
        layer: one that calls `add_loss`.
    """
    if own := twin("keep_losses_apart"):
        own(layer)


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
    own = twin("needs_a_full_call")
    if own and not own(owner, layer):
        return layer.call(*args, **kwargs)
    return layer(*args, **kwargs)


def is_recomputing() -> bool:
    """Returns whether a forward pass is repeated for its gradients.

    On PyTorch, a checkpoint repeats it inside `backward`. What a layer writes
    and adds was written and added the first time. JAX and TensorFlow repeat
    operations, not calls.
    """
    own = twin("is_recomputing")
    return own is not None and own()


def first_value(read: Callable[[], Tensor]) -> Tensor:
    """Returns state by which a forward pass decides.

    When the pass is repeated for its gradients, the value that the first run
    read is returned, though the state has moved since.

    Args:
        read: returns the tensor. It may also move the state on, as a seed
            generator does: it is not called again.
    """
    own = twin("first_value")
    return own(read) if own else read()


def may_be_repeated() -> bool:
    """Returns whether this runs inside a checkpoint that is not ours."""
    own = twin("may_be_repeated")
    return own is not None and own()


def repeatable(pure: bool) -> contextlib.AbstractContextManager[None]:
    """Declares that what runs inside can be repeated without any care.

    Args:
        pure: whether all state comes in and goes out as values there.
    """
    own = twin("repeatable")
    return own(pure) if own else contextlib.nullcontext()


def assign_once(variable: keras.Variable, value: Tensor) -> None:
    """Assigns a value, unless the forward pass is repeated.

    Args:
        variable: state of a layer, read by `first_value`.
        value: the new value.
    """
    if not is_recomputing():
        variable.assign(value)


def trace_here() -> object:
    """Returns what names the function or graph that is traced now.

    Returns:
        Something that equals another call's while the same is traced; always
        None on PyTorch, which traces nothing that a value could not leave.
    """
    own = twin("trace_here")
    return own() if own else None


def is_traced_here(value: Tensor) -> bool:
    """Returns whether a value belongs to what is traced now, as an argument
    of a traced function does.

    Args:
        value: a variable's, for example.
    """
    own = twin("is_traced_here")
    return own is not None and own(value)


def writes_leave_traces() -> bool:
    """Returns whether variables may be written inside any trace.

    On TensorFlow a graph writes; on JAX the value itself has to come out.
    """
    own = twin("writes_leave_traces")
    return own is None or own()


def untraced_zero() -> Tensor:
    """Returns a scalar zero in the floatx that may be used in any trace."""
    own = twin("outside_of_traces")
    with own() if own else contextlib.nullcontext():
        return keras.ops.zeros((), keras.config.floatx())


def settle(variable: keras.Variable) -> None:
    """Puts a bank of weights where it is read fastest, on PyTorch on CPU.

    Args:
        variable: a weight just made; values and identity stay.
    """
    if own := twin("settle"):
        own(variable)


def adam_step(
    variable: keras.Variable,
    gradient: Tensor,
    slots: Sequence[keras.Variable],
    step_size: Callable[[], Tensor],
    betas: tuple[float, float],
    epsilon: float,
) -> bool:
    """Updates a variable and its slots in one pass, where there is such one.

    Args:
        variable: a weight.
        gradient: like it.
        slots: first and second moment; under AMSGrad the largest second one.
        step_size: returns a scalar, with the corrections of bias; called only
            where it is needed.
        betas: of the moments.
        epsilon: beside the root.

    Returns:
        Whether it did; if not, nothing has changed.
    """
    own = twin("adam_step")
    return own is not None and own(
        variable, gradient, slots, step_size, betas, epsilon
    )
