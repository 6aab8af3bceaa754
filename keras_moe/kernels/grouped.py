"""The only heavy work: rows through their groups' matrices and networks.

P routed pairs sorted by expert (the rows), E experts (the groups), D
hidden_dim, F intermediate_dim. A formulation is a module with the same two
functions. `use` forces one; otherwise `formulation_for` in the running
backend's folder decides from the device and from sizes that are known when the
call is traced. All of them give the values and the gradients of `reference.py`.
"""

from keras import ops

from keras_moe.kernels import reference
from keras_moe.kernels.backend import backend
from keras_moe.kernels.captured import keyed
from keras_moe.kernels.forced import forced, is_reference
from keras_moe.kernels.protocol import Formulation, QuantizedFormulation
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.kernels.row_ops import light_ops
from keras_moe.types import Activation, Tensor


def implementation(x: Tensor, kernel: Tensor) -> Formulation:
    """Returns the module for rows `x` `(P, D)` and a kernel `(E, D, F)`."""
    name = forced() or backend.formulation_for(x, kernel.shape[0])
    return reference if name == "reference" else backend.FORMULATIONS[name]


def quantized_implementation() -> QuantizedFormulation:
    """Returns the module for kernels of 8 or 4 bits."""
    return reference if is_reference() else backend.quantized_formulation()


def grouped_matmul(
    x: Tensor, kernel: Tensor | QuantizedKernel, group_sizes: Tensor
) -> Tensor:
    """Multiplies each row by its group's matrix.

    Row p of group e becomes `x[p] @ kernel[e]`; rows behind the last group
    become zero. Only the matrices of non-empty groups are read.

    Args:
        x: float `(P, D)`, rows sorted by group.
        kernel: `(E, D, F)`, the dtype of `x`; or a `QuantizedKernel`, which
            is given no gradient.
        group_sizes: int32 `(E,)`, rows of each group; the sum is at most P.

    Returns:
        `(P, F)`, the dtype of `x`.

    Raises:
        ValueError: where ranks, widths or dtypes do not fit.
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
    """Runs each row through its group's feed-forward network, in one pass.

    Equal by definition to its grouped matmuls: `down(activation(up(x)))`, or
    `down(activation(gate(x)) * up(x))` where there is a gate (Shazeer 2020,
    "GLU Variants Improve Transformer", eq. 5-6). Rows behind the last group
    become zero.

    Args:
        x: float `(P, D)`, rows sorted by group.
        weights: stacked kernels and biases, the dtype of `x`; kernels may be
            `QuantizedKernel`s, all of them, and are given no gradient then.
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
        return reference.composition(
            x, weights, group_sizes, activation, chosen.grouped_matmul, dropout
        )
    return chosen.grouped_ffn(x, weights, group_sizes, keyed(activation), remat)


def _quantized_ffn(x, weights, group_sizes, activation, dropout):
    """`grouped_ffn` of `QuantizedKernel`s; keeps nothing of width F."""
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


def _as_tensor(weight, x):
    """A weight, or the parts of a quantised one, as tensors."""
    if isinstance(weight, QuantizedKernel):
        return weight._replace(
            values=ops.convert_to_tensor(weight.values),
            scale=ops.cast(weight.scale, x.dtype),
        )
    return None if weight is None else light_ops.convert_to_tensor(weight)


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
    if isinstance(weights.up_kernel, QuantizedKernel):
        return _quantized_stack(x, weights, activation, dropout)

    def linear(x, kernel, bias):
        y = ops.matmul(x, ops.convert_to_tensor(kernel))
        return y if bias is None else ops.add(y, ops.expand_dims(bias, 1))

    return ffn(x, weights, activation, linear, dropout)


def _quantized_stack(x, weights, activation, dropout):
    """`stacked_ffn` as groups of R rows each: none is widened with another."""
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


def _check_quantized(x, name, kernel, group_sizes, width):
    stored = -(-width // 2) if kernel.packed else width
    expected = (group_sizes.shape[0], stored)
    if len(x.shape) == 2 and tuple(kernel.values.shape[:-1]) == expected:
        return
    raise ValueError(
        f"`x` must be (P, D) and the values of `{name}` {expected} and F, with "
        f"E = len(group_sizes). Received: x of shape {tuple(x.shape)}, values "
        f"of shape {tuple(kernel.values.shape)}, group_sizes of shape "
        f"{tuple(group_sizes.shape)}. Flatten the leading axes of `x`."
    )


def _check_operands(x, name, kernel, group_sizes, width):
    expected = (group_sizes.shape[0], width)
    if len(x.shape) == 2 and tuple(kernel.shape[:-1]) == expected:
        if x.dtype == kernel.dtype:
            return
    raise ValueError(
        f"`x` must be (P, D) and `{name}` (E, {width}, ...) of the same dtype, "
        f"with E = len(group_sizes). Received: x of shape {tuple(x.shape)} and "
        f"dtype {x.dtype}, {name} of shape {tuple(kernel.shape)} and dtype "
        f"{kernel.dtype}, group_sizes of shape {tuple(group_sizes.shape)}. "
        "Flatten the leading axes of `x` and cast both to one dtype."
    )
