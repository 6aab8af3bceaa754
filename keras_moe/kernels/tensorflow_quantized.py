"""TensorFlow, kernels of 8 or 4 bits: split by counts, one widened matrix.

P rows, sorted by group; E groups; D input and F output width; n rows of one
group; b, 1 where a group has rows and else 0.

What `tensorflow_split.py` is to floats, and like it without an operation that
LiteRT lacks. Where an expert's integers lie is computed from the output of
the expert before. So no two matrices are widened at the same time, which the
executor would do with all of them as the first thing; and LiteRT's converter
cannot widen them while it converts, which would store the floats. An empty
group's slice is empty: its bytes are not read.

Rows that are quantised are multiplied as floats that hold integers: an
integer product has no fast form on CPU here.
"""

import tensorflow as tf

from keras_moe.kernels import quantized
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.types import Activation, Tensor


def grouped_matmul(
    x: Tensor, kernel: QuantizedKernel, group_sizes: Tensor
) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    num_groups, _, width = kernel.values.shape

    def expert(rows, place):
        return _product(rows, kernel, place)

    return _each_group(x, group_sizes, num_groups, width, expert)


def grouped_ffn(
    x: Tensor, weights: FFNWeights, group_sizes: Tensor, activation: Activation
) -> Tensor:
    """Up, gate, activation and down of one expert before the next one's."""
    num_groups, _, width = weights.down_kernel.values.shape

    def expert(rows, place):
        def linear(rows, kernel, bias):
            y = _product(rows, kernel, place)
            return y if bias is None else y + bias[place[0]]

        return ffn(rows, weights, activation, linear)

    return _each_group(x, group_sizes, num_groups, width, expert)


def _each_group(x, group_sizes, num_groups, width, expert):
    """Calls `expert(rows, (e, index, b))` for each group, in order."""
    rest = tf.shape(x)[0] - tf.reduce_sum(group_sizes)
    sizes = tf.concat([group_sizes, rest[None]], axis=0)
    parts = tf.split(x, sizes, axis=0, num=num_groups + 1)
    outputs, before = [], x
    for e in range(num_groups):
        place = e, e + _zero_after(before), tf.minimum(group_sizes[e], 1)
        outputs.append(expert(parts[e], place))
        before = outputs[-1]
    return tf.concat([*outputs, tf.zeros((rest, width), x.dtype)], axis=0)


def _zero_after(rows):
    """Zero, known when the rows are: none is less than minus infinity."""
    less = tf.stop_gradient(rows)[:1, :1] < rows.dtype.as_numpy_dtype("-inf")
    return tf.reduce_sum(tf.cast(less, tf.int32))


def _product(rows, kernel, place):
    """`(n, D) -> (n, F)` by the matrix that lies at `place`."""
    _, index, b = place
    depth, width = rows.shape[-1], kernel.values.shape[-1]

    def own(tensor):
        size = (b, *tensor.shape[1:])
        return tf.slice(tensor, (index, 0, 0), size)

    def widened():
        one = kernel._replace(
            values=own(kernel.values), scale=own(kernel.scale)
        )
        matrix = quantized.widen(one, depth, rows.dtype)
        return tf.reshape(matrix, (b * depth, width))

    def scaled(y):
        scale = quantized.output_scale(kernel, y.dtype)
        return y if scale is None else y * scale[place[0]]

    @tf.custom_gradient
    def run(rows):
        x, divisor = quantized.round_rows(rows, kernel.rounding)
        x = tf.reshape(x, (tf.shape(x)[0], b * depth))
        y = scaled(tf.matmul(x, widened()))
        y = y if divisor is None else y / divisor

        def backward(dy):
            dx = tf.matmul(scaled(dy), widened(), transpose_b=True)
            return tf.reshape(dx, (tf.shape(dx)[0], depth))

        return y, backward

    return tf.ensure_shape(run(rows), (None, width))
