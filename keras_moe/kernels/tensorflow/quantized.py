"""TensorFlow, kernels of 8 or 4 bits: split by counts, one widened matrix.

P rows, sorted by group; E groups; D input and F output width; n rows of one
group.

What `split.py` is to floats, and like it without an operation that
LiteRT lacks. Where an expert's integers lie is computed from the output of
the expert before. So no two matrices are widened at the same time, which the
executor would do with all of them as the first thing; and LiteRT's converter
cannot widen them while it converts, which would store the floats. The bytes of
an empty group are not read: it is a branch that is not taken. (An empty slice
instead stops LiteRT's XNNPACK.)

Rows that are quantised are multiplied as floats that hold integers: an
integer product has no fast form on CPU here.
"""

from functools import partial

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
    kernel = _read(kernel)

    def expert(rows, place):
        return _product(rows, kernel, place)

    return _each_group(x, group_sizes, num_groups, width, expert)


def grouped_ffn(
    x: Tensor, weights: FFNWeights, group_sizes: Tensor, activation: Activation
) -> Tensor:
    """Up, gate, activation and down of one expert before the next one's."""
    num_groups, _, width = weights.down_kernel.values.shape
    weights = FFNWeights(*(_read(weight) for weight in weights))

    def expert(rows, place):
        def linear(rows, kernel, bias):
            y = _product(rows, kernel, place)
            return y if bias is None else y + bias[place[0]]

        return ffn(rows, weights, activation, linear)

    return _each_group(x, group_sizes, num_groups, width, expert)


def _read(weight):
    """A weight as a tensor; Keras leaves variables as they are."""
    if isinstance(weight, QuantizedKernel):
        values, scale = map(tf.convert_to_tensor, weight[:2])
        return weight._replace(values=values, scale=scale)
    return None if weight is None else tf.convert_to_tensor(weight)


def _each_group(x, group_sizes, num_groups, width, expert):
    """Calls `expert(rows, (e, index))` for each group with rows, in order."""
    starts = tf.cumsum(group_sizes, exclusive=True)

    def run(e, place):
        # Cut here: LiteRT readies a branch for its inputs, taken or not.
        rows = tf.slice(x, (starts[e], 0), (group_sizes[e], x.shape[-1]))
        return expert(rows, place)

    eager = tf.executing_eagerly()
    outputs = [x]
    for e in range(num_groups):
        # A tape that saw no expert would have no way for a gradient of zero.
        always = eager and e == 0
        y = tf.cond(
            tf.constant(True) if always else group_sizes[e] > 0,
            partial(run, e, (e, e + _zero_after(outputs[-1]))),
            partial(tf.zeros, (group_sizes[e], width), x.dtype),
        )
        if not eager:
            y.set_shape((None, width))
        outputs.append(y)
    rest = tf.shape(x)[0] - tf.reduce_sum(group_sizes)
    y = tf.concat([*outputs[1:], tf.zeros((rest, width), x.dtype)], axis=0)
    y.set_shape((x.shape[0], width))
    return y


def _zero_after(rows):
    """Zero, known when the rows are: none is less than minus infinity."""
    less = tf.stop_gradient(rows)[:1, :1] < rows.dtype.as_numpy_dtype("-inf")
    return tf.reduce_sum(tf.cast(less, tf.int32))


def _product(rows, kernel, place):
    """`(n, D) -> (n, F)` by the matrix that lies at `place`."""
    depth = rows.shape[-1]

    def own(tensor):
        shape = tensor.shape[1:]
        start = (place[1], *[0] * len(shape))
        return tf.reshape(tf.slice(tensor, start, (1, *shape)), shape)

    def widened():
        one = kernel._replace(
            values=own(kernel.values), scale=own(kernel.scale)
        )
        return quantized.widen(one, depth, rows.dtype)

    def scaled(y):
        scale = quantized.output_scale(kernel, y.dtype)
        return y if scale is None else y * scale[place[0]]

    @tf.custom_gradient
    def run(rows):
        x, divisor = quantized.round_rows(rows, kernel.rounding)
        y = scaled(tf.matmul(x, widened()))

        def backward(dy):
            return tf.matmul(scaled(dy), widened(), transpose_b=True)

        return (y if divisor is None else y / divisor), backward

    return run(rows)
