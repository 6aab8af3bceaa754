"""The grouped kernels on TensorFlow: split by counts, one matmul an expert.

P rows, sorted by group; E groups; D input and F output width. `tf.split` and
`tf.unstack` along the first axis share their input's buffer, and a matmul of
no rows costs nothing, so the work follows the rows. The weights must reach
`tf.unstack` as tensors: a `tf.gather` from a variable anywhere would turn
every later read of that variable into a copy.

XLA has no split of unknown sizes. Under `jit_compile=True` the loop over
blocks in `tensorflow_xla.py` takes over.
"""

import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from keras_moe.kernels import tensorflow_xla
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.types import Activation, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    if _compiles_with_xla():
        return tensorflow_xla.grouped_matmul(x, kernel, group_sizes)
    return _map_groups(
        tf.matmul, x, (kernel,), group_sizes, kernel.shape[0], kernel.shape[-1]
    )


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
) -> Tensor:
    """Up, gate, activation and down of one expert before the next one's."""
    if _compiles_with_xla():
        return tensorflow_xla.grouped_ffn(x, weights, group_sizes, activation)

    def expert(rows, *slices):
        return ffn(rows, FFNWeights(*slices), activation)

    num_groups, _, width = weights.down_kernel.shape
    return _map_groups(expert, x, weights, group_sizes, num_groups, width)


def _compiles_with_xla():
    """Whether the graph being traced is inside a `jit_compile=True` one."""
    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def _map_groups(expert, x, banks, group_sizes, num_groups, width):
    """Calls `expert(rows, *slices)` for each group, in order."""
    rest = tf.shape(x)[0] - tf.reduce_sum(group_sizes)
    sizes = tf.concat([group_sizes, rest[None]], axis=0)
    parts = tf.split(x, sizes, axis=0, num=num_groups + 1)
    slices = [
        [None] * num_groups if b is None else tf.unstack(b, num_groups)
        for b in banks
    ]
    outputs = [
        expert(parts[e], *(s[e] for s in slices)) for e in range(num_groups)
    ]
    return tf.concat([*outputs, tf.zeros((rest, width), x.dtype)], axis=0)
