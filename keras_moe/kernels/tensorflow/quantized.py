"""TensorFlow, kernels of 8 or 4 bits: split by counts, one widened matrix.

P rows, sorted by group; E groups; D input and F output width; n rows of one
group.

This is `split.py` for integers, and like that it uses no operation that LiteRT
lacks. The index of an expert's integers is computed from the output of the
expert before. So the executor cannot widen all matrices first, but only one at
a time, and LiteRT's converter cannot widen them during the conversion, which
would store floats. The bytes of an empty group are not read, since its branch
is not taken. (With an empty slice instead, LiteRT's XNNPACK fails.)

Quantized rows are multiplied as floats that hold integers: TensorFlow has no
fast integer product on CPU.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import tensorflow as tf

from keras_moe.kernels import quantized
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.kernels.tensorflow.gated_units import light_activation
from keras_moe.types import Activation, Tensor

_Place: TypeAlias = tuple[int, Tensor]
"""The number of an expert, and the same number after the expert before."""


def grouped_matmul(
    x: Tensor, kernel: QuantizedKernel, group_sizes: Tensor
) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    num_groups, _, width = kernel.values.shape
    kernel = _read(kernel)

    def expert(rows: Tensor, place: _Place) -> Tensor:
        return _product(rows, kernel, place)

    return _each_group(x, group_sizes, num_groups, width, expert)


def grouped_ffn(
    x: Tensor, weights: FFNWeights, group_sizes: Tensor, activation: Activation
) -> Tensor:
    """Run the whole network of one expert before that of the next one."""
    num_groups, _, width = weights.down_kernel.values.shape
    weights = FFNWeights(*(_read(weight) for weight in weights))
    activation = light_activation(activation)

    def expert(rows: Tensor, place: _Place) -> Tensor:
        def linear(
            rows: Tensor, kernel: QuantizedKernel, bias: Tensor | None
        ) -> Tensor:
            y = _product(rows, kernel, place)
            return y if bias is None else y + bias[place[0]]

        return ffn(rows, weights, activation, linear)

    return _each_group(x, group_sizes, num_groups, width, expert)


def _read(weight: Any) -> Any:
    """Convert a weight to a tensor, also if it is a variable."""
    if isinstance(weight, QuantizedKernel):
        values, scale = map(tf.convert_to_tensor, weight[:2])
        return weight._replace(values=values, scale=scale)
    return None if weight is None else tf.convert_to_tensor(weight)


def _each_group(
    x: Tensor,
    group_sizes: Tensor,
    num_groups: int,
    width: int,
    expert: Callable[[Tensor, _Place], Tensor],
) -> Tensor:
    """Call `expert(rows, (e, index))` for each group with rows, in order."""
    starts = tf.cumsum(group_sizes, exclusive=True)

    def run(e: int, place: _Place) -> Tensor:
        # Sliced here: LiteRT prepares the inputs of a branch that is not taken.
        rows = tf.slice(x, (starts[e], 0), (group_sizes[e], x.shape[-1]))
        return expert(rows, place)

    eager = tf.executing_eagerly()
    outputs = [x]
    for e in range(num_groups):
        # At least one expert runs, so that gradients are zero, not missing.
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


def _zero_after(rows: Tensor) -> Tensor:
    """Return a zero that depends on the rows: none is below minus infinity."""
    less = tf.stop_gradient(rows)[:1, :1] < rows.dtype.as_numpy_dtype("-inf")
    return tf.reduce_sum(tf.cast(less, tf.int32))


def _product(rows: Tensor, kernel: QuantizedKernel, place: _Place) -> Tensor:
    """Multiply rows by the matrix at `place`: `(n, D) -> (n, F)`."""
    depth = rows.shape[-1]

    def own(tensor: Tensor) -> Tensor:
        shape = tensor.shape[1:]
        start = (place[1], *[0] * len(shape))
        return tf.reshape(tf.slice(tensor, start, (1, *shape)), shape)

    def widened() -> Tensor:
        one = kernel._replace(
            values=own(kernel.values), scale=own(kernel.scale)
        )
        return quantized.widen(one, depth, rows.dtype)

    def scaled(y: Tensor) -> Tensor:
        scale = quantized.output_scale(kernel, y.dtype)
        return y if scale is None else y * scale[place[0]]

    def run(rows: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        x, divisor = quantized.round_rows(rows, kernel.rounding)
        y = scaled(tf.matmul(x, widened()))

        def backward(dy: Tensor) -> Tensor:
            return tf.matmul(scaled(dy), widened(), transpose_b=True)

        return (y if divisor is None else y / divisor), backward

    return tf.custom_gradient(run)(rows)
