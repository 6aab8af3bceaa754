"""TensorFlow: compile and differentiate whole functions."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_moe.types import Tensor


def compiled(
    function: Callable[..., Any],
    variables: Sequence[keras.Variable],
    written: Sequence[keras.Variable] = (),
) -> Callable[..., Any]:
    """Use `tf.function`, whose graphs refer to variables."""
    program = tf.function(function, autograph=False)

    def call(*args: Any) -> Any:
        return program(*tf.nest.map_structure(tf.convert_to_tensor, args))

    return call


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Use a tape of its own."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        value = function(x)
    gradient = tape.gradient(
        value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return value, gradient
