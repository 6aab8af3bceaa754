"""TensorFlow: whole programs and gradients."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_moe.types import Tensor


def compiled(
    function: Callable, variables: Sequence, written: Sequence = ()
) -> Callable:
    """A graph refers to variables by itself."""
    program = tf.function(function, autograph=False)

    def call(*args):
        return program(*tf.nest.map_structure(tf.convert_to_tensor, args))

    return call


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """By a tape of its own."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        value = function(x)
    gradient = tape.gradient(
        value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return value, gradient
