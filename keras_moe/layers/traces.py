"""Leave out losses and state that cannot leave a traced function.

On JAX and TensorFlow, a loop (`keras.layers.RNN`, `ops.scan`), `vmap`, and
activation checkpointing (`keras.remat`) trace a function. Losses and values
that a layer adds or assigns inside would be used outside, which fails with an
error far from its cause.
"""

import contextlib
import threading
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import keras

from keras_moe import _keras, kernels
from keras_moe.types import Tensor


class _Thread(threading.local):
    start: object = None  # the trace in which the outermost call began


_THREAD = _Thread()
_warned: weakref.WeakSet[Any] = weakref.WeakSet()


class Traced:
    """Mixin that leaves such losses and state out, with one warning."""

    path: str
    variables: list[keras.Variable]

    def _clear_losses(self) -> None:
        """Record the trace; Keras calls this before each outermost call."""
        if (here := kernels.trace_here()) is not None:
            _THREAD.start = here
        super()._clear_losses()  # type: ignore[misc]

    def can_leave(self) -> bool:
        """Return whether tensors computed here may be used after the trace.

        They may if the outermost call began in this trace, or if this layer's
        own weights are arguments of the trace (`stateless_call`).
        """
        here = kernels.trace_here()
        return here in (None, _THREAD.start) or any(
            kernels.is_traced_here(variable.value)
            for variable in self.variables
        )

    def write(self, variable: keras.Variable, value: Tensor) -> None:
        """Assign state of a training step, once, if it can leave the trace.

        Args:
            variable: Variable of this layer, read by `kernels.first_value`.
            value: Tensor. The new value.
        """
        if kernels.writes_leave_traces() or self.can_leave():
            kernels.assign_once(variable, value)

    def warn_of_state(self) -> None:
        """Warn if the state of this layer's parts is left out."""
        if not (kernels.writes_leave_traces() or self.can_leave()):
            self.leave_out()

    def leave_out(self) -> None:
        """Add zero in place of a loss; warn once if losses are collected."""
        zero = kernels.untraced_zero()
        super().add_loss([zero])  # type: ignore[misc]
        kept = id(zero) in _keras.stateless_loss_ids_of(self) or any(
            loss is zero for loss in _keras.added_losses_of(self)
        )
        if kept and self not in _warned:
            _warned.add(self)
            warnings.warn(
                f"{self.path}: the losses and the training state of this layer "
                "are left out, since they cannot leave the loop, the "
                "`vectorized_map`, or the checkpoint in which it is called: "
                "its load is not balanced. Unroll the loop "
                "(`keras.layers.RNN(cell, unroll=True)`), or create the layer "
                "inside `keras.RematScope()` in place of `keras.remat`.",
                stacklevel=2,
            )


@contextlib.contextmanager
def own_trace() -> Iterator[None]:
    """Allow losses and state inside, which the caller returns as values."""
    before = _THREAD.start
    _THREAD.start = kernels.trace_here()
    try:
        yield
    finally:
        _THREAD.start = before
