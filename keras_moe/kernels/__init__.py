"""Floor 0: the only heavy work, one implementation a backend.

P routed pairs sorted by expert (the rows), E experts (the groups), D
hidden_dim, F intermediate_dim. `choice.py` is the one place that picks who
computes: a formulation of the running backend, or the reference where there
is none or where `use` asks for it. All of them give the values and the
gradients of `reference.py`.
"""

import keras
from keras import ops

from keras_moe.kernels import reference
from keras_moe.kernels.choice import formulations, implementation, use
from keras_moe.kernels.groups import map_groups
from keras_moe.kernels.primitives import (
    compiled,
    group_sizes_of,
    inverse_permutation,
    require,
    sum_over_replicas,
    take_columns,
    top_k_index,
    value_and_gradient,
)
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.types import Activation, Tensor

__all__ = [
    "FFNWeights",
    "compiled",
    "ffn",
    "formulations",
    "group_sizes_of",
    "grouped_ffn",
    "grouped_matmul",
    "implementation",
    "inverse_permutation",
    "map_groups",
    "require",
    "stacked_ffn",
    "sum_over_replicas",
    "take_columns",
    "top_k_index",
    "use",
    "value_and_gradient",
]


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix.

    Row p of group e becomes `x[p] @ kernel[e]`; rows behind the last group
    become zero. Only the matrices of non-empty groups are read.

    Args:
        x: float `(P, D)`, rows sorted by group.
        kernel: `(E, D, F)`, the dtype of `x`.
        group_sizes: int32 `(E,)`, rows of each group; the sum is at most P.

    Returns:
        `(P, F)`, the dtype of `x`.

    Raises:
        ValueError: where ranks, widths or dtypes do not fit.
    """
    x, kernel = ops.convert_to_tensor(x), ops.convert_to_tensor(kernel)
    group_sizes = ops.cast(group_sizes, "int32")
    _check_operands(x, "kernel", kernel, group_sizes, x.shape[-1])
    chosen = implementation(x, kernel)
    return chosen.grouped_matmul(x, kernel, group_sizes)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    dropout: Activation | None = None,
    remat: bool = False,
) -> Tensor:
    """Runs each row through its group's feed-forward network, in one pass.

    Equal by definition to its grouped matmuls: `down(activation(up(x)))`, or
    `down(activation(gate(x)) * up(x))` where there is a gate (Shazeer 2020,
    "GLU Variants Improve Transformer", eq. 5-6). Rows behind the last group
    become zero.

    Args:
        x: float `(P, D)`, rows sorted by group.
        weights: stacked kernels and biases, the dtype of `x`.
        group_sizes: int32 `(E,)`, rows of each group; the sum is at most P.
        activation: elementwise function.
        dropout: function of the hidden rows `(P, F)`, or None. With one, the
            composition runs instead of the single pass.
        remat: whether the gradient computes the hidden rows a second time
            and nothing of width F is kept between. It is what gradient
            checkpointing is; not for use with `dropout`.

    Returns:
        `(P, D)`, the dtype of `x`.

    Raises:
        ValueError: where ranks, widths or dtypes do not fit.
    """
    x = ops.convert_to_tensor(x)
    tensors = [None if w is None else ops.convert_to_tensor(w) for w in weights]
    weights = FFNWeights(*tensors)
    group_sizes = ops.cast(group_sizes, "int32")
    _check_operands(
        x, "weights.up_kernel", weights.up_kernel, group_sizes, x.shape[-1]
    )
    _check_operands(
        x,
        "weights.down_kernel",
        weights.down_kernel,
        group_sizes,
        weights.up_kernel.shape[-1],
    )
    chosen = implementation(x, weights.up_kernel)
    if dropout is not None:
        return reference.composition(
            x, weights, group_sizes, activation, chosen.grouped_matmul, dropout
        )
    return chosen.grouped_ffn(x, weights, group_sizes, activation, remat)


def stacked_ffn(
    x: Tensor,
    weights: FFNWeights,
    activation: Activation,
    dropout: Activation | None = None,
) -> Tensor:
    """Runs all feed-forward networks, each on as many rows R.

    `grouped_ffn` of equal groups, as one product of stacks of matrices: there
    is nothing to sort and no group to skip.

    Args:
        x: float `(E, R, D)`, or `(1, R, D)`, the same for all.
        weights: stacked kernels and biases, the dtype of `x`.
        activation: elementwise function.
        dropout: function of the hidden rows `(E, R, F)`, or None.

    Returns:
        `(E, R, D)`, the dtype of `x`.
    """

    def linear(x, kernel, bias):
        y = ops.matmul(x, ops.convert_to_tensor(kernel))
        return y if bias is None else ops.add(y, ops.expand_dims(bias, 1))

    return ffn(x, weights, activation, linear, dropout)


def _check_operands(x, name, kernel, group_sizes, width):
    expected = (group_sizes.shape[0], width)
    if len(x.shape) == 2 and tuple(kernel.shape[:-1]) == expected:
        if keras.backend.standardize_dtype(
            x.dtype
        ) == keras.backend.standardize_dtype(kernel.dtype):
            return
    raise ValueError(
        f"`x` must be (P, D) and `{name}` (E, {width}, ...) of the same dtype, "
        f"with E = len(group_sizes). Received: x of shape {tuple(x.shape)} and "
        f"dtype {x.dtype}, {name} of shape {tuple(kernel.shape)} and dtype "
        f"{kernel.dtype}, group_sizes of shape {tuple(group_sizes.shape)}. "
        "Flatten the leading axes of `x` and cast both to one dtype."
    )
