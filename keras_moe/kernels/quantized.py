"""Stacked kernels of 8 or 4 bits, and their operations on all backends.

P rows, sorted by group; E groups; D input and F output width; G blocks of D,
each with scales of its own (with G = 1 there is one scale per output channel).

A kernel is stored as integers. One group's matrix at a time is widened to
floats that hold the integers, and the outputs are scaled. With G > 1 the
scales differ along the sum, so that the matrix is scaled instead. The whole
bank never exists as floats.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from keras import ops

from keras_moe.types import Tensor

ZERO_NIBBLE = 8  # four bits 0 ... 15 stand for -8 ... 7


class Rounding(NamedTuple):
    """How rows are rounded to integers: their largest element becomes `high`.

    low, high: int, the range of the integers.
    epsilon: float, added to the largest element.
    """

    low: int = -127
    high: int = 127
    epsilon: float = 1e-7


class QuantizedKernel(NamedTuple):
    """The stacked matrices of E groups, `values * scale`.

    values: int8 `(E, D, F)`; or uint8 `(E, ceil(D / 2), F)` with two rows per
        byte: row d in the low four bits, row d + ceil(D / 2) in the high ones,
        each with 8 added.
    scale: float `(E, G, F)`, the scales of blocks of `block_rows` rows.
    rounding: how the rows that the kernel multiplies are rounded, each row by
        itself (dynamic quantization of activations). None leaves them as
        floats.
    block_rows: int, the rows per block; None if G is 1.
    """

    values: Tensor
    scale: Tensor
    rounding: Rounding | None = None
    block_rows: int | None = None

    @property
    def packed(self) -> bool:
        """Return whether two values share a byte."""
        return "uint8" in str(self.values.dtype)


def widen(kernel: QuantizedKernel, depth: int, dtype: Any) -> Tensor:
    """Return matrices as floats, `(..., D, F)`, scaled if G > 1.

    Args:
        kernel: `QuantizedKernel` of any number of groups, `(..., D, F)`.
        depth: int. D.
        dtype: The dtype of the result.
    """
    values = ops.cast(kernel.values, dtype)
    if kernel.packed:
        high = ops.floor(values * 0.0625)
        values = ops.concatenate([values - 16 * high, high], axis=-2)
        values = values[..., :depth, :] - ZERO_NIBBLE
    if kernel.block_rows is None:
        return values
    return values * row_scales(kernel, depth, dtype)


def row_scales(kernel: QuantizedKernel, depth: int, dtype: Any) -> Tensor:
    """Return the scales of each row, `(..., D, F)`, of a kernel in blocks."""
    scale = ops.expand_dims(ops.cast(kernel.scale, dtype), -2)
    *groups, blocks, _, width = ops.shape(scale)
    rows = ops.tile(scale, (*[1] * len(groups), 1, kernel.block_rows, 1))
    rows = ops.reshape(rows, (*groups, blocks * kernel.block_rows, width))
    return rows[..., :depth, :]


def output_scale(kernel: QuantizedKernel, dtype: Any) -> Tensor | None:
    """Return the factors for products with the matrix of `widen`.

    Their shape is `(..., 1, F)`. None if the matrix itself is scaled.
    """
    return ops.cast(kernel.scale, dtype) if kernel.block_rows is None else None


def round_rows(
    rows: Tensor, rounding: Rounding | None
) -> tuple[Tensor, Tensor | None]:
    """Return rounded rows and the divisors of products with them.

    Returns:
        Integers `(n, D)` in the dtype of the rows, and the divisors `(n, 1)`;
        without `rounding` the rows and None.
    """
    if rounding is None:
        return rows, None
    largest = ops.max(ops.abs(rows), axis=-1, keepdims=True, initial=0)
    divisor = rounding.high / (largest + rounding.epsilon)
    integers = ops.round(rows * divisor)
    return ops.clip(integers, rounding.low, rounding.high), divisor


def product(
    rows: Tensor,
    kernel: QuantizedKernel,
    round_rows: Callable[
        [Tensor, Rounding | None], tuple[Tensor, Tensor | None]
    ] = round_rows,
) -> Tensor:
    """Multiply rows by one group's matrix: `(n, D) -> (n, F)`.

    Args:
        rows: `(n, D)`.
        kernel: `QuantizedKernel` of one group, `(D, F)`.
        round_rows: A backend's own `round_rows`. Defaults to the one of this
            file.
    """
    rows, divisor = round_rows(rows, kernel.rounding)
    matrix = widen(kernel, rows.shape[-1], rows.dtype)
    y, scale = ops.matmul(rows, matrix), output_scale(kernel, rows.dtype)
    y = y if scale is None else y * scale
    return y if divisor is None else y / divisor


def input_gradient(dy: Tensor, kernel: QuantizedKernel, depth: int) -> Tensor:
    """Return the gradient of `product` by its rows, `(n, D)`.

    The gradient of the rounding is the identity, as in Keras's quantized
    layers.
    """
    scale = output_scale(kernel, dy.dtype)
    dy = dy if scale is None else dy * scale
    return ops.matmul(dy, ops.transpose(widen(kernel, depth, dy.dtype)))


def group(kernel: QuantizedKernel, e: int) -> QuantizedKernel:
    """Return the matrix of group e."""
    return kernel._replace(values=kernel.values[e], scale=kernel.scale[e])
