"""Add losses in the floatx, and keep those of all calls of a layer.

Keras sums the losses of a step in the floatx, and on TensorFlow a sum of two
dtypes fails. In `stateless_call`, which trains on JAX, Keras also discards the
losses of a layer when the layer is called a second time. This module corrects
both.
"""

import weakref
from typing import Any

import keras

from keras_moe import _keras, kernels
from keras_moe.kernels import light_ops as ops
from keras_moe.types import Tensor

# Weak references to the losses of a layer's stateless calls. They are no
# attribute of the layer, because that would count as a change of the layer.
_kept: weakref.WeakKeyDictionary[Any, list[Any]] = weakref.WeakKeyDictionary()


class AddedLosses:
    """Mixin that adds losses in the floatx and keeps those of every call."""

    def add_loss(self, loss: Tensor) -> None:
        """Add a scalar loss in the floatx, once per training step."""
        losses = [in_floatx(x) for x in keras.tree.flatten(loss)]
        if kernels.is_recomputing():
            return
        if losses and not self.can_leave():  # type: ignore[attr-defined]
            self.leave_out()  # type: ignore[attr-defined]
            return
        super().add_loss(losses)  # type: ignore[misc]
        ids = _keras.stateless_loss_ids_of(self)
        stateless = [x for x in losses if id(x) in ids]
        if stateless:
            kept = _kept.setdefault(self, [])
            kept.extend(map(weakref.ref, stateless))

    def _clear_losses(self) -> None:
        """Clear the losses, but keep those of earlier stateless calls.

        Keras calls this function before each outermost call of a layer. In a
        `StatelessScope`, that would discard the losses of earlier calls. Losses
        are kept while their tensors are alive: afterwards another object may
        have their id.
        """
        ids = _keras.stateless_loss_ids_of(self)
        ids.clear()
        super()._clear_losses()  # type: ignore[misc]
        if self in _kept:
            alive = [kept for kept in _kept[self] if kept() is not None]
            _kept[self] = alive
            ids.update(id(kept()) for kept in alive)


def in_floatx(loss: Tensor) -> Tensor:
    """Return a loss in the dtype in which Keras sums losses."""
    if not keras.ops.is_tensor(loss):
        return loss  # Keras raises an error for it
    return ops.cast(loss, keras.config.floatx())


class FloatxRegularizer:
    """Computes the penalty of a float32 weight in the floatx.

    Args:
        regularizer: A Keras regularizer.
    """

    def __init__(self, regularizer: Any):
        self.regularizer = regularizer

    def __call__(self, weight: Tensor) -> Tensor:
        """Return the penalty, a scalar."""
        return in_floatx(self.regularizer(weight))


def floatx_regularizer(regularizer: Any) -> FloatxRegularizer | None:
    """Return a regularizer for `add_weight` of a float32 weight, or None."""
    return None if regularizer is None else FloatxRegularizer(regularizer)
