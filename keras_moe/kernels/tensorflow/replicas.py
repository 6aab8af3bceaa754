"""TensorFlow: sums over the replicas of a `tf.distribute` strategy."""

import tensorflow as tf

from keras_moe._tensorflow import inside_xla
from keras_moe.types import Tensor

NOT_TOGETHER = (
    "`fn` of `strategy.run(fn)` must be a plain function to train a model with "
    "a mixture: the mixture sums its load over the replicas, and TensorFlow "
    "cannot wait for other replicas in a nested `tf.function` or in a program "
    "that XLA compiles for CPUs. Received: {}. Decorate the function that "
    "calls `strategy.run` with `@tf.function` instead, without "
    "`jit_compile=True`."
)


def sum_over_replicas(x: Tensor) -> Tensor:
    """Sum over the replicas of a `tf.distribute` strategy."""
    if num_replicas() == 1:
        return x
    if inside_xla() and tf.config.list_logical_devices("GPU") == []:
        raise RuntimeError(NOT_TOGETHER.format("`jit_compile=True` on CPUs"))
    context = tf.distribute.get_replica_context()
    try:
        return context.all_reduce(tf.distribute.ReduceOp.SUM, x)
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise RuntimeError(
            NOT_TOGETHER.format("a `tf.function` inside `strategy.run`")
        ) from error


def num_replicas() -> int:
    """Return the number of replicas; 1 outside of a replica's computation."""
    context = tf.distribute.get_replica_context()
    if context is None:
        return 1
    replicas: int = context.num_replicas_in_sync
    return replicas
