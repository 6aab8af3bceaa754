"""TensorFlow: sizes and values that are known while a graph is traced.

`protocol/` describes what each function does.
"""

import tensorflow as tf

from keras_moe._tensorflow import inside_xla
from keras_moe.types import Tensor


def require(valid: Tensor, message: str) -> Tensor:
    """Check the values; in a graph by an operation that fails when it runs."""
    if tf.executing_eagerly():
        if not bool(tf.reduce_all(valid)):
            raise ValueError(message)
        return valid
    check = tf.debugging.Assert(tf.reduce_all(valid), [message])
    with tf.control_dependencies([check]):
        return tf.identity(valid)


def known_int(value: Tensor) -> int | None:
    """Read the value of an eager tensor."""
    eager = isinstance(value, tf.Tensor) and hasattr(value, "numpy")
    return int(value) if eager else None


def shapes_known(x: Tensor) -> str:
    """Return `"whole"` in XLA, whose batch size the trace may not contain."""
    return "whole" if inside_xla() else "at run time"


def shape_of_count(count: Tensor, otherwise: int) -> int | Tensor:
    """Return the count, unless XLA compiles the graph."""
    return otherwise if inside_xla() else count
