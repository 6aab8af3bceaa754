"""TensorFlow under XLA: blocks of sorted rows, one expert a block.

P rows, sorted by group; E groups; D input and F output width; B rows a block.

The loop is `tensorflow_xla_loop.py`'s; the gradient is a loop of the same
shape, written by hand.
"""

import tensorflow as tf

from keras_moe.kernels import tensorflow_ffn as one
from keras_moe.kernels.reference import FFNWeights, linear
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
        before = _before_activation(rows[0], w)
        hidden = activation(before[-1])
        if w.gate_kernel is not None:
            hidden *= before[0]
        y = linear(hidden, w.down_kernel, w.down_bias)
        return [y, *before[:kept]], []

    (y, *before), _ = map_blocks(
        block, [x], banks, group_sizes, [width, *[inner] * kept]
    )

    def backward(dy):
        def block(rows, slices):
            (x, dy, *before), w = rows, named(slices)
            before = before or _before_activation(x, w)
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


def _before_activation(x, w):
    """`[up]` or `[up, gate]`, each (B, F): of XLA's products these are faster
    forward (L 0.94 times `limit`, transposed 1.45), the gradient's are not."""
    up = linear(x, w.up_kernel, w.up_bias)
    if w.gate_kernel is None:
        return [up]
    return [up, linear(x, w.gate_kernel, w.gate_bias)]


def _outer(a, b):
    """`a^T b`, summed over the rows: `(., .)`."""
    wide = one.wide_dtype(a.dtype)
    return tf.matmul(tf.cast(a, wide), tf.cast(b, wide), transpose_a=True)
