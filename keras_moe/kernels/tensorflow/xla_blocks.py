"""TensorFlow under XLA: blocks of sorted rows, one expert per block.

P rows, sorted by group; E groups; D input and F output width; B rows per block.

The loop is in `xla_loop.py`. The gradient is another such loop, written by
hand. The forward pass does not use the transposed products of `one_expert.py`,
which are slower under XLA.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import tensorflow as tf

from keras_moe.kernels.reference import (
    FFNWeights,
    before_activation,
    composition,
    hidden_units,
    linear,
)
from keras_moe.kernels.tensorflow import one_expert as one
from keras_moe.kernels.tensorflow.gradients import (
    Outputs,
    gradients_of,
    with_gradient,
)
from keras_moe.kernels.tensorflow.xla_loop import map_blocks
from keras_moe.types import Activation, Tensor

_Static: TypeAlias = tuple[Sequence[str], Activation]
"""The names of the weights, and the activation."""


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    return with_gradient(_multiply, _product_gradients, x, kernel, group_sizes)


def _multiply(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Outputs:
    def block(
        rows: Sequence[Tensor], slices: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return [tf.matmul(rows[0], slices[0])], []

    (y,), _ = map_blocks(block, [x], [kernel], group_sizes, [kernel.shape[-1]])
    return y, []


def _product_gradients(args: Sequence[Tensor], _: Any, dy: Tensor) -> Any:
    """Return `dy kernel^T`, and `x^T dy` of each group.

    The gradients of these products are such products again.
    """
    x, kernel, group_sizes = args
    return with_gradient(
        _multiply_transposed, _second_gradients, x, kernel, dy, group_sizes
    )


def _multiply_transposed(
    x: Tensor, kernel: Tensor, dy: Tensor, group_sizes: Tensor
) -> Outputs:
    def block(
        rows: Sequence[Tensor], slices: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        dx_rows = tf.matmul(rows[1], slices[0], transpose_b=True)
        return [dx_rows], [_outer(rows[0], rows[1])]

    (dx,), (dkernel,) = map_blocks(
        block, [x, dy], [kernel], group_sizes, [x.shape[-1]], summed=True
    )
    return (dx, dkernel), []


def _second_gradients(
    args: Sequence[Tensor], _: Any, d_dx: Tensor, d_dkernel: Tensor
) -> Sequence[Tensor]:
    x, kernel, dy, group_sizes = args
    own = _product_gradients((d_dx, d_dkernel, group_sizes), [], dy)
    d_dy = grouped_matmul(d_dx, kernel, group_sizes)
    return *own, d_dy + grouped_matmul(x, d_dkernel, group_sizes)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Run the whole network on one block before the next block."""
    names = [n for n, w in weights._asdict().items() if w is not None]
    banks = [getattr(weights, name) for name in names]
    static = names, activation
    return with_gradient(
        partial(_ffn_forward, static, remat),
        partial(_ffn_gradients, static),
        x,
        *banks,
        group_sizes,
    )


def _ffn_forward(
    static: _Static, remat: bool, x: Tensor, *args: Tensor
) -> Outputs:
    names, activation = static
    *banks, group_sizes = args
    _, inner, width = _named(names, banks).down_kernel.shape
    kept = 0 if remat else 1 + ("gate_kernel" in names)

    def block(
        rows: Sequence[Tensor], slices: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        w = _named(names, slices)
        before = before_activation(rows[0], w)
        hidden = hidden_units(activation, *before)
        y = linear(hidden, w.down_kernel, w.down_bias)
        return [y, *before[:kept]], []

    (y, *before), _ = map_blocks(
        block, [x], banks, group_sizes, [width, *[inner] * kept]
    )
    return y, before


def _ffn_gradients(
    static: _Static,
    args: Sequence[Tensor],
    before: Sequence[Tensor],
    dy: Tensor,
) -> Any:
    """Return the gradients, whose gradients are those of the composition."""
    x, *others = args
    second = partial(_second_ffn_gradients, static)
    return with_gradient(
        partial(_ffn_backward, static), second, x, dy, *others, *before
    )


def _ffn_backward(
    static: _Static, x: Tensor, dy: Tensor, *args: Tensor
) -> Outputs:
    names, activation = static
    banks, (group_sizes, *before) = args[: len(names)], args[len(names) :]

    def block(
        rows: Sequence[Tensor], slices: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        (x, dy, *before), w = rows, _named(names, slices)
        before = before or before_activation(x, w)
        before = [tf.transpose(b) for b in before]
        wide = one.wide_dtype(x.dtype)
        dx, dw = one.gradients(x, dy, before, w, activation, wide)
        return [dx], dw

    rows, widths = [x, dy, *before], [x.shape[-1]]
    (dx,), dbanks = map_blocks(
        block, rows, list(banks), group_sizes, widths, summed=True
    )
    return (dx, *dbanks), []


def _second_ffn_gradients(
    static: _Static, args: Sequence[Tensor], _: Any, *cotangents: Tensor
) -> Sequence[Tensor]:
    names, activation = static
    x, dy, *others = args
    banks, group_sizes = others[: len(names)], others[len(names)]

    def compose(x: Tensor, banks: Sequence[Tensor]) -> Tensor:
        weights = _named(names, banks)
        return composition(x, weights, group_sizes, activation, grouped_matmul)

    dx, *dbanks, d_dy = gradients_of(compose, x, banks, dy, cotangents)
    return dx, d_dy, *dbanks


def _named(names: Sequence[str], banks: Sequence[Tensor]) -> FFNWeights:
    return FFNWeights(**dict(zip(names, banks, strict=True)))


def _outer(a: Tensor, b: Tensor) -> Tensor:
    """Return `a^T b`, summed over the rows in float32 or better."""
    wide = one.wide_dtype(a.dtype)
    return tf.matmul(tf.cast(a, wide), tf.cast(b, wide), transpose_a=True)
