"""TensorFlow: what is known of sizes and values while a graph is traced.

`protocol.py` says what each function does.
"""

import tensorflow as tf

from keras_moe._tensorflow import inside_xla
from keras_moe.types import Tensor


def require(valid: Tensor, message: str) -> Tensor:
    """In a graph an operation of its own, which fails when it runs."""
    if tf.executing_eagerly():
        if not bool(tf.reduce_all(valid)):
            raise ValueError(message)
        return valid
    check = tf.debugging.Assert(tf.reduce_all(valid), [message])
    with tf.control_dependencies([check]):
        return tf.identity(valid)


def known_int(value: Tensor) -> int | None:
    """Not of a tensor of a graph."""
    eager = isinstance(value, tf.Tensor) and hasattr(value, "numpy")
    return int(value) if eager else None


def shapes_known(x: Tensor) -> str:
    """Under XLA all, but a trace may not know the batch; else none."""
    return "whole" if inside_xla() else "at run time"


def shape_of_count(count: Tensor, otherwise: int) -> int | Tensor:
    """A scalar of the graph, unless XLA compiles it."""
    return otherwise if inside_xla() else count
