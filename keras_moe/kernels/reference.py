"""The grouped kernels in plain `keras.ops`: slow, short, and the oracle.

P rows, sorted by group; E groups; D input and F output width. Every expert
multiplies every row and a mask keeps what is its own, so the cost is E times
what it need be. The backend files compute the same values and gradients from
the rows of each group alone; the tests compare them with this file.
"""

from collections.abc import Callable
from typing import NamedTuple

from keras import ops

from keras_moe.kernels import quantized
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.types import Activation, Tensor


class FFNWeights(NamedTuple):
    """The stacked weights of E feed-forward experts.

    A kernel is a tensor, or a `QuantizedKernel` of that shape; all are alike.

    up_kernel: `(E, D, F)`.
    down_kernel: `(E, F, D)`.
    up_bias: `(E, F)` or None.
    down_bias: `(E, D)` or None.
    gate_kernel: `(E, D, F)` or None; its presence makes the experts gated.
    gate_bias: `(E, F)` or None.
    """

    up_kernel: Tensor
    down_kernel: Tensor
    up_bias: Tensor = None
    down_bias: Tensor = None
    gate_kernel: Tensor = None
    gate_bias: Tensor = None


def row_groups(group_sizes: Tensor, num_rows: int | Tensor) -> Tensor:
    """Returns the group of each row, `(P,)` int32; E behind the last group."""
    ends = ops.cumsum(group_sizes)
    rows = ops.arange(num_rows, dtype=ends.dtype)
    return ops.sum(ops.cast(rows[:, None] >= ends[None, :], "int32"), axis=1)


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    if isinstance(kernel, QuantizedKernel):
        x, kernel = _rounded_rows(x, kernel), _dequantized(x, kernel)
    groups = row_groups(group_sizes, ops.shape(x)[0])
    y = ops.matmul(ops.zeros_like(x), kernel[0])
    for e in range(kernel.shape[0]):
        mine = (groups == e)[:, None]
        rows = ops.where(mine, x, ops.zeros_like(x))
        y = ops.where(mine, ops.matmul(rows, kernel[e]), y)
    return y


def _dequantized(x, kernel):
    """The whole bank as floats, `(E, D, F)`."""
    matrices = quantized.widen(kernel, x.shape[-1], x.dtype)
    scale = quantized.output_scale(kernel, x.dtype)
    return matrices if scale is None else matrices * scale


def _rounded_rows(x, kernel):
    """The rows as they are after rounding, if they are rounded; the gradient
    takes no notice of it."""
    rows, divisor = quantized.round_rows(x, kernel.rounding)
    return x if divisor is None else x + ops.stop_gradient(rows / divisor - x)


def add_grouped_bias(y: Tensor, bias: Tensor, group_sizes: Tensor) -> Tensor:
    """Adds `bias[g]` to the rows of group g; rows behind the last stay."""
    groups = row_groups(group_sizes, ops.shape(y)[0])
    nothing = ops.zeros_like(bias[:1])
    return y + ops.take(ops.concatenate([bias, nothing]), groups, axis=0)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """The whole expert; `remat` changes no value, and nothing here."""
    return composition(x, weights, group_sizes, activation, grouped_matmul)


def composition(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    matmul: Callable,
    dropout: Activation | None = None,
) -> Tensor:
    """The whole expert, as the grouped matmuls that define it."""

    def linear(rows, kernel, bias):
        y = matmul(rows, kernel, group_sizes)
        return y if bias is None else add_grouped_bias(y, bias, group_sizes)

    return ffn(x, weights, activation, linear, dropout)


def linear(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Multiplies `(..., D)` by one matrix `(D, F)` and adds its bias."""
    y = ops.matmul(x, kernel)
    return y if bias is None else ops.add(y, bias)


def ffn(
    x: Tensor,
    weights: FFNWeights,
    activation: Activation,
    linear=linear,
    dropout: Activation | None = None,
) -> Tensor:
    """One feed-forward network: what an expert is.

    `down(activation(gate(x)) * up(x))` when gated, otherwise
    `down(activation(up(x)))`.

    Args:
        x: `(..., D)`.
        weights: one expert's, `(D, F)` and so on without the axis E; stacked
            ones where `linear` knows how to use them.
        activation: elementwise function.
        linear: function of rows, kernel and bias (or None).
        dropout: function of the hidden units, or None.
    """
    before = before_activation(x, weights, linear)
    hidden = hidden_units(activation, *before)
    if dropout is not None:
        hidden = dropout(hidden)
    return linear(hidden, weights.down_kernel, weights.down_bias)


def before_activation(
    x: Tensor, weights: FFNWeights, linear=linear
) -> list[Tensor]:
    """Returns `[up]`, or `[up, gate]` of a gated expert: see `ffn`."""
    up = linear(x, weights.up_kernel, weights.up_bias)
    if weights.gate_kernel is None:
        return [up]
    return [up, linear(x, weights.gate_kernel, weights.gate_bias)]


def hidden_units(
    activation: Activation, up: Tensor, gate: Tensor | None = None
) -> Tensor:
    """Returns what the network's second half multiplies: see `ffn`."""
    return activation(up) if gate is None else activation(gate) * up
