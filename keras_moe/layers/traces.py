"""Losses and state that cannot leave what is traced.

On JAX and TensorFlow a loop (`keras.layers.RNN`, `ops.scan`), `vmap`, and a
user's own checkpoint (`keras.remat`) trace a function. What a layer adds or
writes inside would be used outside, which is an error far from its cause.
"""

import contextlib
import threading
import warnings
import weakref
from collections.abc import Iterator

import keras

from keras_moe import _keras, kernels
from keras_moe.types import Tensor


class _Thread(threading.local):
    start: object = None  # what was traced when the outermost call began


_THREAD = _Thread()
_warned: weakref.WeakSet = weakref.WeakSet()


class Traced:
    """Mixin: leaves out what cannot leave, with one warning."""

    path: str
    variables: list

    def _clear_losses(self) -> None:
        """Keras calls it where an outermost call begins."""
        if (here := kernels.trace_here()) is not None:
            _THREAD.start = here
        super()._clear_losses()  # type: ignore[misc]

    def can_leave(self) -> bool:
        """Returns whether what is computed here may outlive the trace.

        It may in the trace in which the outermost call began, or into which
        this layer's own weights came as arguments (`stateless_call`).
        """
        here = kernels.trace_here()
        return here in (None, _THREAD.start) or any(
            kernels.is_traced_here(variable.value)
            for variable in self.variables
        )

    def write(self, variable: keras.Variable, value: Tensor) -> None:
        """Assigns state of a training step, once, where it can leave.

        Args:
            variable: of this layer, read by `kernels.first_value`.
            value: the new value.
        """
        if kernels.writes_leave_traces() or self.can_leave():
            kernels.assign_once(variable, value)

    def warn_of_state(self) -> None:
        """Warns where the state of this layer's parts is left out."""
        if not (kernels.writes_leave_traces() or self.can_leave()):
            self.leave_out()

    def leave_out(self) -> None:
        """Adds zero in place of a loss, and warns where losses are kept."""
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
                "`vectorized_map` or the checkpoint that it is called in: its "
                "load is not balanced. Unroll the loop "
                "(`keras.layers.RNN(cell, unroll=True)`), or make the layer "
                "inside `keras.RematScope()` in place of `keras.remat`.",
                stacklevel=2,
            )


@contextlib.contextmanager
def own_trace() -> Iterator[None]:
    """Inside, losses and state are collected and given back as values."""
    before = _THREAD.start
    _THREAD.start = kernels.trace_here()
    try:
        yield
    finally:
        _THREAD.start = before
