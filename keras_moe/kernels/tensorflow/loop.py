"""TensorFlow, many experts in training: one loop over the groups with rows.

P rows, sorted by group; E groups; D input and F output width.

A step slices one group's rows and one expert's weights, both views of their
tensors, so that the cost follows the number of rows. The output rows are
concatenated at the end. The weight gradients are written directly into those
of the bank, which are never copied. The graph is the same for every E: all
experts in one graph would train slightly faster, but take long to trace. To
save tracing time, too, the loop is a function of its own, which blocks of the
same shapes share, and which is not inlined.

The weights must be tensors here: a `tf.gather` from a variable anywhere would
turn every later read of that variable into a copy.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import tensorflow as tf

from keras_moe._tensorflow import NOT_INLINED
from keras_moe.kernels import reference
from keras_moe.kernels.reference import FFNWeights
from keras_moe.kernels.tensorflow import one_expert as one
from keras_moe.kernels.tensorflow.gradients import (
    Outputs,
    gradients_of,
    with_gradient,
)
from keras_moe.kernels.tensorflow.group_loop import (
    Groups,
    Visited,
    for_each,
    groups_of,
    rows_of,
)
from keras_moe.types import Activation, Tensor

_Traced: TypeAlias = Callable[[Tensor, Sequence[Tensor], Tensor], Tensor]
"""A function of `x`, `banks`, and `group_sizes`."""

_Static: TypeAlias = tuple[tuple[str, ...], Activation]
"""The names of the weights, and the activation."""


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    kernel = tf.convert_to_tensor(kernel)
    return traced_once(_matmul, (), x, [kernel], group_sizes, kernel.shape[-1])


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Run the whole network of one expert before that of the next one.

    `remat` computes up and gate again in the backward pass instead of keeping
    them, for about 2/9 more work.
    """
    names = tuple(n for n, w in weights._asdict().items() if w is not None)
    banks = [tf.convert_to_tensor(getattr(weights, name)) for name in names]
    width = weights.down_kernel.shape[-1]
    static = (names, activation, remat)
    return traced_once(_ffn, static, x, banks, group_sizes, width)


def traced_once(
    function: Callable[..., _Traced],
    static: tuple[Any, ...],
    x: Tensor,
    banks: Sequence[Tensor],
    group_sizes: Tensor,
    width: int,
) -> Tensor:
    """Run `function(*static)(x, banks, group_sizes)`: `(P, width)`.

    It runs as a graph for any P that all calls with the same static values and
    shapes share.
    """
    shapes = tuple(tuple(bank.shape) for bank in banks)
    traced = _traced(function, static, x.shape[-1], shapes, x.dtype)
    y = traced(x, banks, group_sizes)
    return tf.ensure_shape(y, (x.shape[0], width))


@functools.lru_cache(maxsize=128)
def _traced(
    function: Callable[..., _Traced],
    static: tuple[Any, ...],
    width: int,
    shapes: tuple[tuple[int, ...], ...],
    dtype: tf.DType,
) -> _Traced:
    traced: _Traced = tf.function(
        function(*static),
        input_signature=[
            tf.TensorSpec((None, width), dtype),
            [tf.TensorSpec(shape, dtype) for shape in shapes],
            tf.TensorSpec(shapes[0][:1], tf.int32),
        ],
        autograph=False,
        experimental_attributes=NOT_INLINED,
    )
    return traced


def _matmul() -> _Traced:
    def matmul(
        x: Tensor, banks: Sequence[Tensor], group_sizes: Tensor
    ) -> Tensor:
        (kernel,) = banks
        return _product(x, kernel, groups_of(group_sizes))

    return matmul


def _product(x: Tensor, kernel: Tensor, groups: Sequence[Tensor]) -> Tensor:
    return with_gradient(_multiply, _product_gradients, x, kernel, *groups)


def _multiply(x: Tensor, kernel: Tensor, *groups: Tensor) -> Outputs:
    groups = Groups(*groups)

    def visit(e: Tensor) -> Visited:
        return [tf.matmul(rows_of(x, groups, e), kernel[e])], []

    (y,), _ = for_each(groups, visit, x, [kernel.shape[-1]])
    return y, []


def _product_gradients(args: Sequence[Tensor], _: Any, dy: Tensor) -> Any:
    """Return `dy kernel^T`, and `x^T dy` of each group.

    The gradients of these products are such products again.
    """
    x, kernel, *groups = args
    return with_gradient(
        _multiply_transposed, _second_gradients, x, kernel, dy, *groups
    )


def _multiply_transposed(
    x: Tensor, kernel: Tensor, dy: Tensor, *groups: Tensor
) -> Outputs:
    groups = Groups(*groups)

    def visit(e: Tensor) -> Visited:
        rows, d = rows_of(x, groups, e), rows_of(dy, groups, e)
        dx = tf.matmul(d, kernel[e], transpose_b=True)
        return [dx], [tf.matmul(rows, d, transpose_a=True)]

    (dx,), (dkernel,) = for_each(
        groups, visit, x, [x.shape[-1]], banks=[kernel]
    )
    return (dx, dkernel), []


def _second_gradients(
    args: Sequence[Tensor], _: Any, d_dx: Tensor, d_dkernel: Tensor
) -> Sequence[Tensor]:
    x, kernel, dy, *groups = args
    own = _product_gradients((d_dx, d_dkernel, *groups), [], dy)
    d_dy = _product(d_dx, kernel, groups) + _product(x, d_dkernel, groups)
    return *own, d_dy


def _ffn(
    names: tuple[str, ...], activation: Activation, remat: bool
) -> _Traced:
    static = names, activation
    forward = partial(_ffn_forward, static, remat)
    gradients = partial(_ffn_gradients, static)

    def ffn(x: Tensor, banks: Sequence[Tensor], group_sizes: Tensor) -> Tensor:
        groups = groups_of(group_sizes)
        return with_gradient(forward, gradients, x, *banks, *groups)

    return ffn


def _ffn_forward(
    static: _Static, remat: bool, x: Tensor, *args: Tensor
) -> Outputs:
    names, activation = static
    banks, groups = _parted(names, args)
    _, inner, width = banks[1].shape
    kept = 0 if remat else 1 + ("gate_kernel" in names)

    def visit(e: Tensor) -> Visited:
        w = _slices(names, banks, e)
        before = one.before_activation(rows_of(x, groups, e), w)
        y = one.after_activation(activation, before, w)
        # (F, P) has as many elements as (P, F), and is joined in that shape.
        return [y, *(tf.reshape(b, (-1, inner)) for b in before[:kept])], []

    (y, *before), _ = for_each(groups, visit, x, [width, *[inner] * kept])
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
    banks, groups, *before = _parted(names, args)
    inner = banks[0].shape[-1]

    def visit(e: Tensor) -> Visited:
        rows, w = rows_of(x, groups, e), _slices(names, banks, e)
        units = [tf.reshape(rows_of(b, groups, e), (inner, -1)) for b in before]
        units = units or one.before_activation(rows, w)
        dx, dw = one.gradients(
            rows, rows_of(dy, groups, e), units, w, activation, x.dtype
        )
        return [dx], dw

    (dx,), dbanks = for_each(groups, visit, x, [x.shape[-1]], banks=banks)
    return (dx, *dbanks), []


def _second_ffn_gradients(
    static: _Static, args: Sequence[Tensor], _: Any, *cotangents: Tensor
) -> Sequence[Tensor]:
    names, activation = static
    x, dy, *others = args
    banks, groups, *_ = _parted(names, others)

    def product(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
        return _product(x, kernel, groups)

    def compose(x: Tensor, banks: Sequence[Tensor]) -> Tensor:
        weights = FFNWeights(**dict(zip(names, banks, strict=True)))
        return reference.composition(
            x, weights, groups.sizes, activation, product
        )

    dx, *dbanks, d_dy = gradients_of(compose, x, banks, dy, cotangents)
    return dx, d_dy, *dbanks


def _parted(names: tuple[str, ...], args: Sequence[Tensor]) -> tuple[Any, ...]:
    """Return the banks, the groups, and the arguments behind them."""
    banks, rest = args[: len(names)], args[len(names) :]
    count = len(Groups._fields)
    return banks, Groups(*rest[:count]), *rest[count:]


def _slices(
    names: tuple[str, ...], banks: Sequence[Tensor], e: Tensor
) -> FFNWeights:
    return FFNWeights(
        **{name: bank[e] for name, bank in zip(names, banks, strict=True)}
    )
