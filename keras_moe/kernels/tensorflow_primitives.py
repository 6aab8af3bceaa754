"""TensorFlow: the primitives that keras.ops has not.

What each does is said in `primitives.py`.
"""

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


def sum_over_replicas(x: Tensor) -> Tensor:
    """Over the replicas of a `tf.distribute` strategy."""
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return x
    return context.all_reduce(tf.distribute.ReduceOp.SUM, x)


def require(valid: Tensor, message: str) -> Tensor:
    """In a graph an operation of its own, which fails when it runs."""
    if tf.executing_eagerly():
        if not bool(tf.reduce_all(valid)):
            raise ValueError(message)
        return valid
    check = tf.debugging.Assert(tf.reduce_all(valid), [message])
    with tf.control_dependencies([check]):
        return tf.identity(valid)
