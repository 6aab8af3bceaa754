"""The losses that layers of the package add.

Keras sums the losses of a step in the floatx, and on TensorFlow a sum of two
dtypes fails. In `stateless_call`, which trains on JAX, it also forgets a
layer's losses when the layer is called a second time. Both are mended here.
"""

import weakref
from typing import Any

import keras

from keras_moe import _keras, kernels
from keras_moe.kernels import light_ops as ops
from keras_moe.types import Tensor

# Weak references to the losses of a layer's stateless calls. Beside the layers:
# as an attribute they would count as a change of the layer.
_kept: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


class AddedLosses:
    """Mixin: adds losses in the floatx, those of every call of a step."""

    def add_loss(self, loss: Tensor) -> None:
        """Adds a scalar loss, in the floatx, once per training step."""
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
        """Keras calls it before each outermost call of a layer.

        In a `StatelessScope` that would drop the losses of the calls before,
        whose tensors are alive. The id of one that is gone may be another's.
        """
        ids = _keras.stateless_loss_ids_of(self)
        ids.clear()
        super()._clear_losses()  # type: ignore[misc]
        if self in _kept:
            alive = [kept for kept in _kept[self] if kept() is not None]
            _kept[self] = alive
            ids.update(id(kept()) for kept in alive)


def in_floatx(loss: Tensor) -> Tensor:
    """Returns a loss in the dtype in which Keras sums losses."""
    if not keras.ops.is_tensor(loss):
        return loss  # Keras refuses it
    return ops.cast(loss, keras.config.floatx())


class FloatxRegularizer:
    """Returns the penalty of a float32 weight in the floatx.

    Args:
        regularizer: of `keras.regularizers`.
    """

    def __init__(self, regularizer: Any):
        self.regularizer = regularizer

    def __call__(self, weight: Tensor) -> Tensor:
        """Returns the penalty, a scalar."""
        return in_floatx(self.regularizer(weight))


def floatx_regularizer(regularizer: Any) -> FloatxRegularizer | None:
    """Returns a regularizer for `add_weight` of a float32 weight, or None."""
    return None if regularizer is None else FloatxRegularizer(regularizer)
