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
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_moe.kernels import tensorflow_ffn as one
from keras_moe.kernels.reference import FFNWeights
from keras_moe.types import Activation, Tensor

PARALLEL_STEPS = 2


class Groups(NamedTuple):
    """order: the groups with rows; empty: the others; starts, sizes: (E,)."""

    order: Tensor
    empty: Tensor
    starts: Tensor
    sizes: Tensor


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
        experimental_attributes={"_noinline": True},
    )


def _matmul():
    def matmul(x, banks, group_sizes):
        groups = _groups(group_sizes)
        forward = tf.custom_gradient(
            lambda x, kernel: _matmul_forward(x, kernel, groups)
        )
        return forward(x, *banks)

    return matmul


def _matmul_forward(x, kernel, groups):
    def visit(e):
        return [tf.matmul(rows_of(x, groups, e), kernel[e])], []

    (y,), _ = for_each(groups, visit, x, [kernel.shape[-1]])

    def backward(dy):
        def visit(e):
            rows, d = rows_of(x, groups, e), rows_of(dy, groups, e)
            dx = tf.matmul(d, kernel[e], transpose_b=True)
            return [dx], [tf.matmul(rows, d, transpose_a=True)]

        (dx,), dkernels = for_each(
            groups, visit, x, [x.shape[-1]], banks=[kernel]
        )
        return dx, *dkernels

    return y, backward


def _ffn(names, activation, remat):
    def ffn(x, banks, group_sizes):
        groups = _groups(group_sizes)

        @tf.custom_gradient
        def forward(x, *banks):
            def weights(e):
                slices = [bank[e] for bank in banks]
                return FFNWeights(**dict(zip(names, slices, strict=True)))

            return _ffn_forward(x, banks, weights, groups, activation, remat)

        return forward(x, *banks)

    return ffn


def _ffn_forward(x, banks, weights, groups, activation, remat):
    _, inner, width = banks[1].shape
    kept = 0 if remat else 1 + (weights(0).gate_kernel is not None)

    def visit(e):
        before = one.before_activation(rows_of(x, groups, e), weights(e))
        y = one.after_activation(activation, before, weights(e))
        # As many words as (P, F), joined as if they were that.
        return [y, *(tf.reshape(b, (-1, inner)) for b in before[:kept])], []

    (y, *before), _ = for_each(groups, visit, x, [width, *[inner] * kept])
    # Else an eager tape looks for second-order gradients through them.
    before = [tf.stop_gradient(b) for b in before]

    def backward(dy):
        def visit(e):
            rows, w = rows_of(x, groups, e), weights(e)
            units = [
                tf.reshape(rows_of(b, groups, e), (inner, -1)) for b in before
            ]
            units = units or one.before_activation(rows, w)
            dx, dw = one.gradients(
                rows, rows_of(dy, groups, e), units, w, activation, x.dtype
            )
            return [dx], dw

        (dx,), dbanks = for_each(groups, visit, x, [x.shape[-1]], banks=banks)
        return dx, *dbanks

    return y, backward


def _groups(sizes):
    order = tf.cast(tf.where(sizes > 0)[:, 0], tf.int32)
    empty = tf.cast(tf.where(sizes <= 0)[:, 0], tf.int32)
    return Groups(order, empty, tf.cumsum(sizes, exclusive=True), sizes)


def rows_of(tensor: Tensor, groups: Groups, e: Tensor) -> Tensor:
    """The rows of group e: a view."""
    start = tf.stack([groups.starts[e], 0])
    return tf.slice(tensor, start, tf.stack([groups.sizes[e], -1]))


def for_each(
    groups: Groups,
    visit: Callable[[Tensor], tuple[list, list]],
    x: Tensor,
    widths: Sequence[int],
    banks: Sequence[Tensor] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """Runs `visit(e)` for each group with rows, in order.

    Args:
        groups: whose rows; of E, where there are `banks`.
        visit: returns a list of (., width) rows, one for each of `widths`,
            and a list of one expert's gradients, like `banks`.
        x: `(P, .)`, what gives P and the dtype.
        widths: of the outputs.
        banks: list of (E, ...) tensors that have gradients.

    Returns:
        (P, width) outputs, zero behind the last group; (E, ...) gradients.
    """
    count = tf.shape(groups.order)[0]
    arrays = [
        tf.TensorArray(
            x.dtype, count + 1, infer_shape=False, element_shape=(None, w)
        )
        for w in widths
    ]
    gradients = [_new_bank(bank, groups.empty) for bank in banks]

    def step(i, arrays, gradients):
        e = groups.order[i]
        values, parts = visit(e)
        arrays = [a.write(i, v) for a, v in zip(arrays, values, strict=True)]
        gradients = [
            _write(g, e[None], _as_words(p, bank))
            for g, p, bank in zip(gradients, parts, banks, strict=True)
        ]
        return i + 1, arrays, gradients

    _, arrays, gradients = tf.while_loop(
        lambda i, *_: i < count,
        step,
        (tf.constant(0), arrays, gradients),
        parallel_iterations=PARALLEL_STEPS,
    )
    rest = tf.shape(x)[0] - tf.reduce_sum(groups.sizes)
    outputs = [
        _joined(array, count, tf.zeros((rest, width), x.dtype))
        for array, width in zip(arrays, widths, strict=True)
    ]
    gradients = [
        tf.reshape(tf.bitcast(words, bank.dtype), bank.shape)
        for words, bank in zip(gradients, banks, strict=True)
    ]
    return outputs, gradients


def _joined(array, count, rest):
    """All rows, the last ones being `rest`: (P, width)."""
    rows = array.write(count, rest).concat()
    return tf.ensure_shape(rows, (None, rest.shape[-1]))


def _new_bank(bank, empty):
    """Words for a gradient like `bank`: zero for the empty groups, or unset."""
    zeros = tf.zeros((tf.shape(empty)[0], *bank.shape[1:]), bank.dtype)
    words = _as_words(zeros, bank)
    shape = (bank.shape[0], words.shape[1])
    unset = tf.raw_ops.Empty(shape=shape, dtype=words.dtype)
    return _write(unset, empty, words)


def _as_words(slices, bank):
    """Slices of a bank as `(., n)`, in words of 8 bytes where they divide it.

    In those, copying a slice into its bank takes 0.8 of the time it takes in
    float32 and 0.45 of that in bfloat16.
    """
    size = math.prod(bank.shape[1:])
    each = tf.double.size // bank.dtype.size
    if each == 1 or size % each:
        return tf.reshape(slices, (-1, size))
    return tf.bitcast(tf.reshape(slices, (-1, size // each, each)), tf.double)


def _write(tensor, index, value):
    """Writes into the memory of `tensor`, which nothing else may read yet."""
    return tf.raw_ops.InplaceUpdate(x=tensor, i=index, v=value)
