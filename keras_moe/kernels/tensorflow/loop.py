"""The grouped kernels on TensorFlow: one loop over the groups with rows.

P rows, sorted by group; E groups; D input and F output width.

A step slices one group's rows and one expert's weights, both views of their
tensors, so the work follows the rows. Its rows are joined with the others' at
the end; its weight gradients go straight to the expert's place in the bank's,
of which there is never a second copy. (A training step at P=16384, E=64,
D=512, F=1024 takes 760 MB so, all experts in one graph 1,010.) The graph is
the same for every E: all experts in one graph train up to 5 % faster, but 24
blocks of 128 take two minutes to trace. For the same reason the loop is a
function of its own, which blocks of one shape share, not inlined by them.

The weights must be tensors here: a `tf.gather` from a variable anywhere would
turn every later read of that variable into a copy.
"""

import functools
from collections.abc import Callable, Sequence
from functools import partial

import tensorflow as tf

from keras_moe._tensorflow import NOT_INLINED
from keras_moe.kernels import reference
from keras_moe.kernels.reference import FFNWeights
from keras_moe.kernels.tensorflow import one_expert as one
from keras_moe.kernels.tensorflow.gradients import gradients_of, with_gradient
from keras_moe.kernels.tensorflow.group_loop import (
    Groups,
    for_each,
    groups_of,
    rows_of,
)
from keras_moe.types import Activation, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    kernel = tf.convert_to_tensor(kernel)
    return traced_once(_matmul, (), x, [kernel], group_sizes, kernel.shape[-1])


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Up, gate, activation and down of one expert before the next one's.

    `remat` computes up and gate again in the backward pass instead of keeping
    them: 67 MB less for each at P=16384 and F=1024, for about 2/9 more work.
    """
    names = tuple(n for n, w in weights._asdict().items() if w is not None)
    banks = [tf.convert_to_tensor(getattr(weights, name)) for name in names]
    width = weights.down_kernel.shape[-1]
    static = (names, activation, remat)
    return traced_once(_ffn, static, x, banks, group_sizes, width)


def traced_once(
    function: Callable[..., Callable],
    static: tuple,
    x: Tensor,
    banks: Sequence[Tensor],
    group_sizes: Tensor,
    width: int,
) -> Tensor:
    """Returns `function(*static)(x, banks, group_sizes)`, `(P, width)`, by a
    graph for any P that all calls of the same static values and shapes share.
    """
    shapes = tuple(tuple(bank.shape) for bank in banks)
    traced = _traced(function, static, x.shape[-1], shapes, x.dtype)
    y = traced(x, banks, group_sizes)
    return tf.ensure_shape(y, (x.shape[0], width))


@functools.lru_cache(maxsize=128)
def _traced(function, static, width, shapes, dtype):
    return tf.function(
        function(*static),
        input_signature=[
            tf.TensorSpec((None, width), dtype),
            [tf.TensorSpec(shape, dtype) for shape in shapes],
            tf.TensorSpec(shapes[0][:1], tf.int32),
        ],
        autograph=False,
        experimental_attributes=NOT_INLINED,
    )


def _matmul():
    def matmul(x, banks, group_sizes):
        (kernel,) = banks
        return _product(x, kernel, groups_of(group_sizes))

    return matmul


def _product(x, kernel, groups):
    return with_gradient(_multiply, _product_gradients, x, kernel, *groups)


def _multiply(x, kernel, *groups):
    groups = Groups(*groups)

    def visit(e):
        return [tf.matmul(rows_of(x, groups, e), kernel[e])], []

    (y,), _ = for_each(groups, visit, x, [kernel.shape[-1]])
    return y, []


def _product_gradients(args, _, dy):
    """`dy kernel^T` and, of each group, `x^T dy`. Their own gradients are
    such products again."""
    x, kernel, *groups = args
    return with_gradient(
        _multiply_transposed, _second_gradients, x, kernel, dy, *groups
    )


def _multiply_transposed(x, kernel, dy, *groups):
    groups = Groups(*groups)

    def visit(e):
        rows, d = rows_of(x, groups, e), rows_of(dy, groups, e)
        dx = tf.matmul(d, kernel[e], transpose_b=True)
        return [dx], [tf.matmul(rows, d, transpose_a=True)]

    (dx,), (dkernel,) = for_each(
        groups, visit, x, [x.shape[-1]], banks=[kernel]
    )
    return (dx, dkernel), []


def _second_gradients(args, _, d_dx, d_dkernel):
    x, kernel, dy, *groups = args
    own = _product_gradients((d_dx, d_dkernel, *groups), [], dy)
    d_dy = _product(d_dx, kernel, groups) + _product(x, d_dkernel, groups)
    return *own, d_dy


def _ffn(names, activation, remat):
    static = names, activation
    forward = partial(_ffn_forward, static, remat)
    gradients = partial(_ffn_gradients, static)

    def ffn(x, banks, group_sizes):
        groups = groups_of(group_sizes)
        return with_gradient(forward, gradients, x, *banks, *groups)

    return ffn


def _ffn_forward(static, remat, x, *args):
    names, activation = static
    banks, groups = _parted(names, args)
    _, inner, width = banks[1].shape
    kept = 0 if remat else 1 + ("gate_kernel" in names)

    def visit(e):
        w = _slices(names, banks, e)
        before = one.before_activation(rows_of(x, groups, e), w)
        y = one.after_activation(activation, before, w)
        # As many words as (P, F), joined as if they were that.
        return [y, *(tf.reshape(b, (-1, inner)) for b in before[:kept])], []

    (y, *before), _ = for_each(groups, visit, x, [width, *[inner] * kept])
    return y, before


def _ffn_gradients(static, args, before, dy):
    """Their own gradients are those of the composition."""
    x, *others = args
    second = partial(_second_ffn_gradients, static)
    return with_gradient(
        partial(_ffn_backward, static), second, x, dy, *others, *before
    )


def _ffn_backward(static, x, dy, *args):
    names, activation = static
    banks, groups, *before = _parted(names, args)
    inner = banks[0].shape[-1]

    def visit(e):
        rows, w = rows_of(x, groups, e), _slices(names, banks, e)
        units = [tf.reshape(rows_of(b, groups, e), (inner, -1)) for b in before]
        units = units or one.before_activation(rows, w)
        dx, dw = one.gradients(
            rows, rows_of(dy, groups, e), units, w, activation, x.dtype
        )
        return [dx], dw

    (dx,), dbanks = for_each(groups, visit, x, [x.shape[-1]], banks=banks)
    return (dx, *dbanks), []


def _second_ffn_gradients(static, args, _, *cotangents):
    names, activation = static
    x, dy, *others = args
    banks, groups, *_ = _parted(names, others)

    def product(x, kernel, group_sizes):
        return _product(x, kernel, groups)

    def compose(x, banks):
        weights = FFNWeights(**dict(zip(names, banks, strict=True)))
        return reference.composition(
            x, weights, groups.sizes, activation, product
        )

    dx, *dbanks, d_dy = gradients_of(compose, x, banks, dy, cotangents)
    return dx, d_dy, *dbanks


def _parted(names, args):
    """The banks, the groups, and what comes behind them."""
    banks, rest = args[: len(names)], args[len(names) :]
    count = len(Groups._fields)
    return banks, Groups(*rest[:count]), *rest[count:]


def _slices(names, banks, e):
    return FFNWeights(
        **{name: bank[e] for name, bank in zip(names, banks, strict=True)}
    )
