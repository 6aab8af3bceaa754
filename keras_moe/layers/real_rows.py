"""Activity regularizers of experts that run on padded rows.

If shapes are static, an expert runs on its rows and on copies of the last row.
The penalty must cover only its own rows.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_moe.layers.trainable_parts import parts_of
from keras_moe.types import Tensor


class RealRows:
    """Computes the penalty of the real rows only.

    Keras divides the penalty by the number of all rows. Copies are set to zero,
    which adds nothing to L1 and L2.

    Args:
        regularizer: Keras regularizer of the outputs of a layer.
        real: Bool tensor of shape `(n,)`, False for a copy.
    """

    def __init__(self, regularizer: Any, real: Tensor):
        self.regularizer = regularizer
        self.real = real

    def __call__(self, outputs: Tensor) -> Tensor:
        """Return the penalty of outputs `(n, ...)` or `(n * s, ...)`."""
        number, rows = self.real.shape[0], outputs.shape[0]
        if None in (number, rows) or rows % number:
            return self.regularizer(outputs)
        real = ops.repeat(self.real, rows // number)
        real = ops.reshape(real, (-1,) + (1,) * (len(outputs.shape) - 1))
        penalty = self.regularizer(ops.where(real, outputs, 0))
        count = ops.maximum(ops.sum(ops.cast(self.real, penalty.dtype)), 1)
        return penalty * (number / count)


@contextlib.contextmanager
def only_real_rows(
    layer: keras.layers.Layer, real: Tensor | None
) -> Iterator[None]:
    """Restrict the activity regularizers of a layer to its real rows.

    Args:
        layer: A layer. The layers inside it are changed as well.
        real: Bool tensor of shape `(n,)`, or None if all rows are real.
    """
    parts = [layer, *(part for _, part, _ in parts_of(layer))]
    given = [(x, x.activity_regularizer) for x in parts]
    given = [(x, r) for x, r in given if r is not None and real is not None]
    try:
        for part, regularizer in given:
            part.activity_regularizer = RealRows(regularizer, real)
        yield
    finally:
        for part, regularizer in given:
            part.activity_regularizer = regularizer
