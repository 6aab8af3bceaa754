"""The heavy work: multiply rows by matrices, or run networks, by group.

P routed pairs sorted by expert (the rows), E experts (the groups), D
hidden_dim, F intermediate_dim. A formulation is a module with the functions
`grouped_matmul` and `grouped_ffn`. `use` forces one. Otherwise
`formulation_for` in the running backend's folder chooses one by the device and
by sizes that are known when the call is traced. Every formulation gives the
values and the gradients of `reference.py`.
"""

from typing import Any

from keras import ops

from keras_moe.kernels import reference
from keras_moe.kernels.backend import backend
from keras_moe.kernels.captured import keyed
from keras_moe.kernels.forced import forced, is_reference
from keras_moe.kernels.protocol import Formulation, QuantizedFormulation
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.kernels.reference import FFNWeights
from keras_moe.kernels.row_ops import light_ops
from keras_moe.types import Activation, Tensor


def implementation(x: Tensor, kernel: Tensor) -> Formulation:
    """Return the module for rows `x` `(P, D)` and a kernel `(E, D, F)`."""
    name = forced() or backend.formulation_for(x, kernel.shape[0])
    return reference if name == "reference" else backend.FORMULATIONS[name]


def quantized_implementation() -> QuantizedFormulation:
    """Return the module for kernels of 8 or 4 bits."""
    return reference if is_reference() else backend.quantized_formulation()


def light_activation(activation: Activation) -> Activation:
    """Return an activation with the same values and gradients.

    It may take less time than the given one, and keep fewer tensors for its
    gradient.

    Args:
        activation: Elementwise function, or a `GatedUnit`.
    """
    return backend.light_activation(activation)


def grouped_matmul(
    x: Tensor, kernel: Tensor | QuantizedKernel, group_sizes: Tensor
) -> Tensor:
    """Multiply each row by its group's matrix.

    Row p of group e becomes `x[p] @ kernel[e]`. Rows behind the last group
    become zero. Only the matrices of groups with rows are read.

    Args:
        x: float `(P, D)`. The rows, sorted by group.
        kernel: `(E, D, F)`, in the dtype of `x`, or a `QuantizedKernel`, which
            gets no gradient.
        group_sizes: int32 `(E,)`. The number of rows per group; their sum is
            at most P.

    Returns:
        `(P, F)`, in the dtype of `x`.

    Raises:
        ValueError: If `x` does not have two axes, if the first axes of
            `kernel` are not E and D, or if the dtypes of `x` and a `kernel`
            that is not quantized differ.
    """
    x = light_ops.convert_to_tensor(x)
    group_sizes = light_ops.cast(group_sizes, "int32")
    kernel = _as_tensor(kernel, x)
    if isinstance(kernel, QuantizedKernel):
        _check_quantized(x, "kernel", kernel, group_sizes, x.shape[-1])
        chosen = quantized_implementation()
        return chosen.grouped_matmul(x, kernel, group_sizes)
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
    """Run each row through its group's feed-forward network, in one pass.

    By definition, the outputs equal those of grouped matmuls:
    `down(activation(up(x)))`, or `down(activation(gate(x)) * up(x))` if there
    is a gate; with a `GatedUnit`, `down(activation(gate(x), up(x)))`. Rows
    behind the last group become zero.

    Reference: Shazeer 2020, "GLU Variants Improve Transformer", eq. 5-6.

    Args:
        x: float `(P, D)`. The rows, sorted by group.
        weights: `FFNWeights`. Stacked kernels and biases, in the dtype of `x`.
            Either all kernels are `QuantizedKernel`s, which get no gradient,
            or none is.
        group_sizes: int32 `(E,)`. The number of rows per group; their sum is
            at most P.
        activation: Elementwise function, or a `GatedUnit`.
        dropout: Function of the hidden rows `(P, F)`. With a function, separate
            grouped matmuls run instead of the single pass. `None` (the
            default) applies no dropout.
        remat: bool. Whether the backward pass computes the hidden rows again
            (gradient checkpointing), so that nothing of width F is kept.
            Defaults to `False`. It has no effect with `dropout` or quantized
            kernels.

    Returns:
        `(P, D)`, in the dtype of `x`.

    Raises:
        ValueError: If `x` does not have two axes, if the first axes of
            `up_kernel` are not E and D or those of `down_kernel` not E and F,
            or if the dtypes of `x` and a kernel that is not quantized differ.
    """
    x = light_ops.convert_to_tensor(x)
    weights = FFNWeights(*(_as_tensor(w, x) for w in weights))
    group_sizes = light_ops.cast(group_sizes, "int32")
    if isinstance(weights.up_kernel, QuantizedKernel):
        return _quantized_ffn(x, weights, group_sizes, activation, dropout)
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
        light = light_activation(activation)
        return reference.composition(
            x, weights, group_sizes, light, chosen.grouped_matmul, dropout
        )
    return chosen.grouped_ffn(x, weights, group_sizes, keyed(activation), remat)


def _quantized_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    dropout: Activation | None,
) -> Tensor:
    """Run `grouped_ffn` with `QuantizedKernel`s."""
    inner = weights.up_kernel.values.shape[-1]
    for name, width in (("up_kernel", x.shape[-1]), ("down_kernel", inner)):
        kernel = getattr(weights, name)
        _check_quantized(x, f"weights.{name}", kernel, group_sizes, width)
    chosen = quantized_implementation()
    if dropout is not None or chosen is reference:
        return reference.composition(
            x, weights, group_sizes, activation, chosen.grouped_matmul, dropout
        )
    return chosen.grouped_ffn(x, weights, group_sizes, keyed(activation))


def _as_tensor(weight: Any, x: Tensor) -> Any:
    """Convert a weight, or the parts of a quantized kernel, to tensors."""
    if isinstance(weight, QuantizedKernel):
        return weight._replace(
            values=ops.convert_to_tensor(weight.values),
            scale=ops.cast(weight.scale, x.dtype),
        )
    return None if weight is None else light_ops.convert_to_tensor(weight)


def ffn(
    x: Tensor,
    weights: FFNWeights,
    activation: Activation,
    dropout: Activation | None = None,
) -> Tensor:
    """Run one feed-forward network on all rows, see `grouped_ffn`.

    Args:
        x: float `(..., D)`.
        weights: `FFNWeights` of one expert, without the axis E, in the dtype of
            `x`.
        activation: Elementwise function, or a `GatedUnit`.
        dropout: Function of the hidden units. `None` (the default) applies no
            dropout.

    Returns:
        `(..., D)`, in the dtype of `x`.
    """
    light = light_activation(activation)
    return reference.ffn(x, weights, light, dropout=dropout)


def stacked_ffn(
    x: Tensor,
    weights: FFNWeights,
    activation: Activation,
    dropout: Activation | None = None,
) -> Tensor:
    """Run all feed-forward networks, each on R rows.

    This is `grouped_ffn` for groups of equal size, computed as batched matrix
    products: there is nothing to sort and no group to skip.

    Args:
        x: float `(E, R, D)`, or `(1, R, D)` if all networks get the same rows.
        weights: `FFNWeights`. Stacked kernels and biases, in the dtype of `x`.
        activation: Elementwise function, or a `GatedUnit`.
        dropout: Function of the hidden rows `(E, R, F)`. `None` (the default)
            applies no dropout.

    Returns:
        `(E, R, D)`, in the dtype of `x`.
    """
    if isinstance(weights.up_kernel, QuantizedKernel):
        return _quantized_stack(x, weights, activation, dropout)

    def linear(x: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
        y = ops.matmul(x, ops.convert_to_tensor(kernel))
        return y if bias is None else ops.add(y, ops.expand_dims(bias, 1))

    light = light_activation(activation)
    return reference.ffn(x, weights, light, linear, dropout)


def _quantized_stack(
    x: Tensor,
    weights: FFNWeights,
    activation: Activation,
    dropout: Activation | None,
) -> Tensor:
    """Run `stacked_ffn` as groups, so that one kernel is widened at a time."""
    num_groups = weights.up_kernel.values.shape[0]
    num_rows, width = ops.shape(x)[1:]
    rows = ops.broadcast_to(x, (num_groups, num_rows, width))
    y = grouped_ffn(
        ops.reshape(rows, (-1, width)),
        weights,
        ops.broadcast_to(ops.reshape(num_rows, (1,)), (num_groups,)),
        activation,
        dropout,
    )
    return ops.reshape(y, (num_groups, num_rows, y.shape[-1]))


def _check_quantized(
    x: Tensor,
    name: str,
    kernel: QuantizedKernel,
    group_sizes: Tensor,
    width: int,
) -> None:
    stored = -(-width // 2) if kernel.packed else width
    num_groups = group_sizes.shape[0]
    expected = (num_groups, stored)
    if len(x.shape) == 2 and tuple(kernel.values.shape[:-1]) == expected:
        return
    raise ValueError(
        f"`x` must be of shape (P, D) and the values of `{name}` must have "
        f"shape ({num_groups}, {stored}, F), with E = len(group_sizes). "
        f"Received: x of shape {tuple(x.shape)}, values of shape "
        f"{tuple(kernel.values.shape)}, group_sizes of shape "
        f"{tuple(group_sizes.shape)}. Flatten the leading axes of `x`."
    )


def _check_operands(
    x: Tensor, name: str, kernel: Tensor, group_sizes: Tensor, width: int
) -> None:
    expected = (group_sizes.shape[0], width)
    if len(x.shape) == 2 and tuple(kernel.shape[:-1]) == expected:
        if x.dtype == kernel.dtype:
            return
    raise ValueError(
        f"`x` must be of shape (P, D) and `{name}` must have shape "
        f"(E, {width}, ...) and the dtype of `x`, with E = len(group_sizes). "
        f"Received: x of shape {tuple(x.shape)} and dtype {x.dtype}, {name} of "
        f"shape {tuple(kernel.shape)} and dtype {kernel.dtype}, group_sizes of "
        f"shape {tuple(group_sizes.shape)}. Flatten the leading axes of `x` "
        "and cast both to one dtype."
    )
