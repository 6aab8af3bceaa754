"""Activity regularizers of experts that run on more rows than they have.

Where shapes are static, an expert runs on its rows and on copies of the last
one. The penalty must be that of its own rows.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from keras_moe.layers.trainable_parts import parts_of
from keras_moe.types import Tensor


class RealRows:
    """Returns the penalty of the rows that are real.

    Keras divides the penalty by the number of all rows. The others are zero
    here, which costs nothing under L1 and L2.

    Args:
        regularizer: of a layer's outputs.
        real: bool `(n,)`, False for a copy.
    """

    def __init__(self, regularizer: Any, real: Tensor):
        self.regularizer = regularizer
        self.real = real

    def __call__(self, outputs: Tensor) -> Tensor:
        """Returns the penalty of outputs `(n, ...)` or `(n * s, ...)`."""
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
    """Inside, activity regularizers of a layer see its real rows alone.

    Args:
        layer: an expert; the layers inside it are changed as well.
        real: bool `(n,)`, or None if all rows are real.
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
