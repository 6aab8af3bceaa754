"""TensorFlow under XLA: blocks of sorted rows, one expert a block.

P rows, sorted by group; E groups; D input and F output width; B rows a block.

The loop is `tensorflow_xla_loop.py`'s; the gradient is a loop of the same
shape, written by hand. Forward, the products are not `tensorflow_ffn.py`'s
transposed ones: under XLA L takes 1.10 times `limit` as it is, 1.45 so.
"""

import tensorflow as tf

from keras_moe.kernels import tensorflow_ffn as one
from keras_moe.kernels.reference import (
    FFNWeights,
    before_activation,
    hidden_units,
    linear,
)
from keras_moe.kernels.tensorflow_xla_loop import map_blocks
from keras_moe.types import Activation, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""

    @tf.custom_gradient
    def forward(x, kernel):
        def block(rows, slices):
            return [tf.matmul(rows[0], slices[0])], []

        (y,), _ = map_blocks(
            block, [x], [kernel], group_sizes, [kernel.shape[-1]]
        )

        def backward(dy):
            def block(rows, slices):
                dx_rows = tf.matmul(rows[1], slices[0], transpose_b=True)
                return [dx_rows], [_outer(rows[0], rows[1])]

            (dx,), (dkernel,) = map_blocks(
                block,
                [x, dy],
                [kernel],
                group_sizes,
                [x.shape[-1]],
                summed=True,
            )
            return dx, dkernel

        return y, backward

    return forward(x, kernel)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Up, gate, activation and down of one block before the next one's."""
    names = [n for n, w in weights._asdict().items() if w is not None]
    banks = [getattr(weights, name) for name in names]

    def named(slices):
        return FFNWeights(**dict(zip(names, slices, strict=True)))

    @tf.custom_gradient
    def forward(x, *banks):
        return _ffn_forward(x, banks, named, group_sizes, activation, remat)

    return forward(x, *banks)


def _ffn_forward(x, banks, named, group_sizes, activation, remat):
    _, inner, width = named(banks).down_kernel.shape
    kept = 0 if remat else 1 + (named(banks).gate_kernel is not None)

    def block(rows, slices):
        w = named(slices)
        before = before_activation(rows[0], w)
        hidden = hidden_units(activation, *before)
        y = linear(hidden, w.down_kernel, w.down_bias)
        return [y, *before[:kept]], []

    (y, *before), _ = map_blocks(
        block, [x], banks, group_sizes, [width, *[inner] * kept]
    )

    def backward(dy):
        def block(rows, slices):
            (x, dy, *before), w = rows, named(slices)
            before = before or before_activation(x, w)
            before = [tf.transpose(b) for b in before]
            wide = one.wide_dtype(x.dtype)
            dx, dw = one.gradients(x, dy, before, w, activation, wide)
            return [dx], dw

        (dx,), dbanks = map_blocks(
            block,
            [x, dy, *before],
            banks,
            group_sizes,
            [x.shape[-1]],
            summed=True,
        )
        return dx, *dbanks

    return y, backward


def _outer(a, b):
    """`a^T b`, summed over the rows: `(., .)`."""
    wide = one.wide_dtype(a.dtype)
    return tf.matmul(tf.cast(a, wide), tf.cast(b, wide), transpose_a=True)
