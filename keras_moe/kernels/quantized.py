"""Stacked kernels of 8 or 4 bits, and what all backends do with them alike.

P rows, sorted by group; E groups; D input and F output width; G blocks of D
that have a scale of their own (1: a scale for each output channel).

A kernel is kept as integers. One group's matrix is widened at a time, to
floats that hold the integers, and the outputs are scaled; with G > 1 the
scales differ along the sum, so that the matrix is scaled instead. The whole
bank is never there in floats.
"""

from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from keras_moe.types import Tensor

ZERO_NIBBLE = 8  # four bits 0 ... 15 stand for -8 ... 7


class Rounding(NamedTuple):
    """How rows are brought to integers: their largest element to `high`.

    low, high: the integers' range. epsilon: added to the largest element.
    """

    low: int = -127
    high: int = 127
    epsilon: float = 1e-7


class QuantizedKernel(NamedTuple):
    """The stacked matrices of E groups, `values * scale`.

    values: `(E, D, F)` int8; or `(E, ceil(D / 2), F)` uint8, two rows a byte:
        row d in the low four bits, row d + ceil(D / 2) in the high ones, each
        with 8 added.
    scale: float `(E, G, F)`, of blocks of `block_rows` rows.
    rounding: None, or how the rows that meet the kernel are rounded, each by
        itself ("dynamic" quantisation of the activations).
    block_rows: rows of one block, or None where G is 1.
    """

    values: Tensor
    scale: Tensor
    rounding: Rounding | None = None
    block_rows: int | None = None

    @property
    def packed(self) -> bool:
        """Whether two values share a byte."""
        return "uint8" in str(self.values.dtype)


def widen(kernel: QuantizedKernel, depth: int, dtype) -> Tensor:
    """Returns matrices as floats: `(..., D, F)`, scaled where G > 1.

    Args:
        kernel: any number of groups, `(..., D, F)`.
        depth: D.
        dtype: of the result.
    """
    values = ops.cast(kernel.values, dtype)
    if kernel.packed:
        high = ops.floor(values * 0.0625)
        values = ops.concatenate([values - 16 * high, high], axis=-2)
        values = values[..., :depth, :] - ZERO_NIBBLE
    if kernel.block_rows is None:
        return values
    return values * row_scales(kernel, depth, dtype)


def row_scales(kernel: QuantizedKernel, depth: int, dtype) -> Tensor:
    """Returns each row's scales, `(..., D, F)`, of a kernel in blocks."""
    scale = ops.expand_dims(ops.cast(kernel.scale, dtype), -2)
    *groups, blocks, _, width = ops.shape(scale)
    rows = ops.tile(scale, (*[1] * len(groups), 1, kernel.block_rows, 1))
    rows = ops.reshape(rows, (*groups, blocks * kernel.block_rows, width))
    return rows[..., :depth, :]


def output_scale(kernel: QuantizedKernel, dtype) -> Tensor | None:
    """Returns what products with `widen`'s matrix must be multiplied by:
    `(..., 1, F)`, or None where the matrix is scaled itself."""
    return ops.cast(kernel.scale, dtype) if kernel.block_rows is None else None


def round_rows(
    rows: Tensor, rounding: Rounding | None
) -> tuple[Tensor, Tensor | None]:
    """Returns integers `(n, D)` in the dtype of the rows, and what products
    with them must be divided by, `(n, 1)`; without `rounding` the rows."""
    if rounding is None:
        return rows, None
    largest = ops.max(ops.abs(rows), axis=-1, keepdims=True, initial=0)
    divisor = rounding.high / (largest + rounding.epsilon)
    integers = ops.round(rows * divisor)
    return ops.clip(integers, rounding.low, rounding.high), divisor


def product(
    rows: Tensor, kernel: QuantizedKernel, round_rows: Callable = round_rows
) -> Tensor:
    """Multiplies rows by one group's matrix: `(n, D) -> (n, F)`.

    Args:
        rows: `(n, D)`.
        kernel: of one group, `(D, F)`.
        round_rows: a backend's own form of it.
    """
    rows, divisor = round_rows(rows, kernel.rounding)
    matrix = widen(kernel, rows.shape[-1], rows.dtype)
    y, scale = ops.matmul(rows, matrix), output_scale(kernel, rows.dtype)
    y = y if scale is None else y * scale
    return y if divisor is None else y / divisor


def input_gradient(dy: Tensor, kernel: QuantizedKernel, depth: int) -> Tensor:
    """Returns the gradient of `product` by its rows, `(n, D)`.

    Rounding the rows counts as the identity, as in Keras's quantised layers.
    """
    scale = output_scale(kernel, dy.dtype)
    dy = dy if scale is None else dy * scale
    return ops.matmul(dy, ops.transpose(widen(kernel, depth, dy.dtype)))


def group(kernel: QuantizedKernel, e: int) -> QuantizedKernel:
    """Returns the matrix of group e."""
    return kernel._replace(values=kernel.values[e], scale=kernel.scale[e])
