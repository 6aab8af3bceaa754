"""All that the package uses of TensorFlow's private API.

`tests/package/private_api/test_private_tensorflow.py` asserts the effect of
each name.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla
from tensorflow.python.eager import forwardprop_util, record
from tensorflow.python.ops import control_flow_util

from keras_moe.types import Tensor

NOT_INLINED = {"_noinline": True}
"""Attributes of a `tf.function` that stays a function of its own in every
graph that calls it."""


def is_recorded() -> bool:
    """Return whether a tape or a `ForwardAccumulator` records operations."""
    recorded: bool = record.could_possibly_record()
    return recorded


def in_forward_mode(x: Tensor) -> bool:
    """Return whether a `tf.autodiff.ForwardAccumulator` is in effect.

    Args:
        x: Any tensor.
    """
    return bool(forwardprop_util.pack_tangents([x]).indices)


def inside_xla() -> bool:
    """Return whether what is traced now is compiled by XLA."""
    graph = tf.compat.v1.get_default_graph()
    inside: bool = control_flow_util.GraphOrParentsInXlaContext(graph)
    return inside


def xla_slice(x: Tensor, starts: Tensor, sizes: list[int]) -> Tensor:
    """Return a part of `x` of static sizes; it runs only inside of XLA."""
    return xla.dynamic_slice(x, starts, sizes)


def xla_update_slice(x: Tensor, part: Tensor, starts: Tensor) -> Tensor:
    """Return `x` with a part replaced; it runs only inside of XLA."""
    return xla.dynamic_update_slice(x, part, starts)


def has_several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Return whether a strategy's replicas are in more than one process.

    Args:
        strategy: `tf.distribute.MultiWorkerMirroredStrategy`.
    """
    several: bool = strategy.extended._in_multi_worker_mode()
    return several
