"""The grouped kernels in plain `keras.ops`: short, slow, and the test oracle.

P rows, sorted by group; E groups; D input and F output width. Every expert
multiplies every row and a mask selects its own, so that the cost is E times as
high as necessary. The backends compute the same values and gradients from each
group's rows alone; the tests compare them with this file.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from keras import ops

from keras_moe.kernels import quantized
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.types import Activation, GatedUnit, Tensor


class FFNWeights(NamedTuple):
    """The stacked weights of E feed-forward experts.

    Either all kernels are tensors, or all are `QuantizedKernel`s of the same
    shapes.

    up_kernel: `(E, D, F)`.
    down_kernel: `(E, F, D)`.
    up_bias: `(E, F)` or None.
    down_bias: `(E, D)` or None.
    gate_kernel: `(E, D, F)` or None. With a kernel the experts are gated.
    gate_bias: `(E, F)` or None.
    """

    up_kernel: Tensor
    down_kernel: Tensor
    up_bias: Tensor | None = None
    down_bias: Tensor | None = None
    gate_kernel: Tensor | None = None
    gate_bias: Tensor | None = None


Linear: TypeAlias = Callable[[Tensor, Any, Any], Tensor]
"""`linear(rows, kernel, bias)`: rows by one matrix or by a bank of them, plus
a bias if it is not None."""


def row_groups(group_sizes: Tensor, num_rows: int | Tensor) -> Tensor:
    """Return the group of each row, int32 `(P,)`; E behind the last group."""
    ends = ops.cumsum(group_sizes)
    rows = ops.arange(num_rows, dtype=ends.dtype)
    return ops.sum(ops.cast(rows[:, None] >= ends[None, :], "int32"), axis=1)


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    if isinstance(kernel, QuantizedKernel):
        x, kernel = _rounded_rows(x, kernel), _dequantized(x, kernel)
    groups = row_groups(group_sizes, ops.shape(x)[0])
    y = ops.matmul(ops.zeros_like(x), kernel[0])
    for e in range(kernel.shape[0]):
        mine = (groups == e)[:, None]
        rows = ops.where(mine, x, ops.zeros_like(x))
        y = ops.where(mine, ops.matmul(rows, kernel[e]), y)
    return y


def _dequantized(x: Tensor, kernel: QuantizedKernel) -> Tensor:
    """Return the whole bank as floats, `(E, D, F)`."""
    matrices = quantized.widen(kernel, x.shape[-1], x.dtype)
    scale = quantized.output_scale(kernel, x.dtype)
    return matrices if scale is None else matrices * scale


def _rounded_rows(x: Tensor, kernel: QuantizedKernel) -> Tensor:
    """Return the rows after rounding, whose gradient is the identity."""
    rows, divisor = quantized.round_rows(x, kernel.rounding)
    return x if divisor is None else x + ops.stop_gradient(rows / divisor - x)


def add_grouped_bias(y: Tensor, bias: Tensor, group_sizes: Tensor) -> Tensor:
    """Add `bias[g]` to the rows of group g, and zero behind the last group."""
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
    """Run each row through its group's network; `remat` is ignored here."""
    return composition(x, weights, group_sizes, activation, grouped_matmul)


def composition(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    matmul: Callable[[Tensor, Any, Tensor], Tensor],
    dropout: Activation | None = None,
) -> Tensor:
    """Run each row through its group's network, as separate grouped matmuls.

    Args:
        x: `(P, D)`.
        weights: `FFNWeights`. Stacked kernels and biases.
        group_sizes: int32 `(E,)`. The number of rows per group.
        activation: Elementwise function, or a `GatedUnit`.
        matmul: A formulation's `grouped_matmul`.
        dropout: Function of the hidden rows, or None.
    """

    def linear(rows: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        y = matmul(rows, kernel, group_sizes)
        return y if bias is None else add_grouped_bias(y, bias, group_sizes)

    return ffn(x, weights, activation, linear, dropout)


def linear(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
    """Multiply `(..., D)` by one matrix `(D, F)` and add its bias."""
    y = ops.matmul(x, kernel)
    return y if bias is None else ops.add(y, bias)


def ffn(
    x: Tensor,
    weights: FFNWeights,
    activation: Activation,
    linear: Linear = linear,
    dropout: Activation | None = None,
) -> Tensor:
    """Run one feed-forward network, which is an expert.

    It is `down(activation(gate(x)) * up(x))` with a gate, or
    `down(activation(gate(x), up(x)))` if the activation is a `GatedUnit`,
    otherwise `down(activation(up(x)))`.

    Args:
        x: `(..., D)`.
        weights: `FFNWeights` of one expert, without the axis E, or stacked
            ones if `linear` is made for these.
        activation: Elementwise function, or a `GatedUnit`.
        linear: Function of rows, kernel, and bias (or None). Defaults to one
            matrix product and a sum.
        dropout: Function of the hidden units, or None.
    """
    before = before_activation(x, weights, linear)
    hidden = hidden_units(activation, *before)
    if dropout is not None:
        hidden = dropout(hidden)
    return linear(hidden, weights.down_kernel, weights.down_bias)


def before_activation(
    x: Tensor, weights: FFNWeights, linear: Linear = linear
) -> list[Tensor]:
    """Return `[up]`, or `[up, gate]` of a gated expert: see `ffn`."""
    up = linear(x, weights.up_kernel, weights.up_bias)
    if weights.gate_kernel is None:
        return [up]
    return [up, linear(x, weights.gate_kernel, weights.gate_bias)]


def hidden_units(
    activation: Activation, up: Tensor, gate: Tensor | None = None
) -> Tensor:
    """Return the hidden units, which the down kernel multiplies: see `ffn`."""
    if gate is None:
        return activation(up)
    if isinstance(activation, GatedUnit):
        return activation(gate, up)
    return activation(gate) * up
