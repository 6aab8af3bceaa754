"""TensorFlow: a loop over the groups that have rows.

P rows, sorted by group; E groups. The loop has no gradient; `loop.py` defines
one.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import tensorflow as tf

from keras_moe.types import Tensor

PARALLEL_STEPS = 2


class Groups(NamedTuple):
    """The groups of sorted rows.

    order: int32, the numbers of the groups with rows.
    empty: int32, the numbers of the other groups.
    starts, sizes: int32 `(E,)`, the first row and the rows of each group.
    """

    order: Tensor
    empty: Tensor
    starts: Tensor
    sizes: Tensor


Visited: TypeAlias = tuple[list[Tensor], list[Tensor]]
"""The output rows of one group, and the gradients of its expert's weights."""


def groups_of(sizes: Tensor) -> Groups:
    """Return the groups of the given sizes, int32 `(E,)`."""
    order = tf.cast(tf.where(sizes > 0)[:, 0], tf.int32)
    empty = tf.cast(tf.where(sizes <= 0)[:, 0], tf.int32)
    return Groups(order, empty, tf.cumsum(sizes, exclusive=True), sizes)


def rows_of(tensor: Tensor, groups: Groups, e: Tensor) -> Tensor:
    """Return the rows of group e, as a view."""
    start = tf.stack([groups.starts[e], 0])
    return tf.slice(tensor, start, tf.stack([groups.sizes[e], -1]))


def for_each(
    groups: Groups,
    visit: Callable[[Tensor], Visited],
    x: Tensor,
    widths: Sequence[int],
    banks: Sequence[Tensor] = (),
) -> tuple[list[Tensor], list[Tensor]]:
    """Run `visit(e)` for each group with rows, in order.

    Args:
        groups: The groups; with `banks` there are E.
        visit: Function of the number of a group. It returns a list of rows
            `(., width)`, one for each of `widths`, and a list of the gradients
            of one expert's weights, in the order of `banks`.
        x: `(P, .)`. It gives P and the dtype of the outputs.
        widths: The widths of the outputs.
        banks: Tensors `(E, ...)` that have gradients. Defaults to none.

    Returns:
        Outputs `(P, width)`, zero behind the last group; and gradients
        `(E, ...)`.
    """
    count = tf.shape(groups.order)[0]
    arrays = [
        tf.TensorArray(
            x.dtype, count + 1, infer_shape=False, element_shape=(None, w)
        )
        for w in widths
    ]
    gradients = [_new_bank(bank, groups.empty) for bank in banks]

    def step(
        i: Tensor, arrays: list[tf.TensorArray], gradients: list[Tensor]
    ) -> tuple[Tensor, list[tf.TensorArray], list[Tensor]]:
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


def _joined(array: tf.TensorArray, count: Tensor, rest: Tensor) -> Tensor:
    """Return all rows, of which `rest` are the last: `(P, width)`."""
    rows = array.write(count, rest).concat()
    return tf.ensure_shape(rows, (None, rest.shape[-1]))


def _new_bank(bank: Tensor, empty: Tensor) -> Tensor:
    """Return words for a gradient of `bank`, unset except for empty groups."""
    zeros = tf.zeros((tf.shape(empty)[0], *bank.shape[1:]), bank.dtype)
    words = _as_words(zeros, bank)
    shape = (bank.shape[0], words.shape[1])
    unset = tf.raw_ops.Empty(shape=shape, dtype=words.dtype)
    return _write(unset, empty, words)


def _as_words(slices: Tensor, bank: Tensor) -> Tensor:
    """Return slices of a bank as `(., n)`, in words of 8 bytes if possible.

    A slice is copied into its bank faster in words of 8 bytes than in float32
    or bfloat16.
    """
    size = math.prod(bank.shape[1:])
    each = tf.double.size // bank.dtype.size
    if each == 1 or size % each:
        return tf.reshape(slices, (-1, size))
    return tf.bitcast(tf.reshape(slices, (-1, size // each, each)), tf.double)


def _write(tensor: Tensor, index: Tensor, value: Tensor) -> Tensor:
    """Write into the memory of `tensor`, which nothing else may read yet."""
    return tf.raw_ops.InplaceUpdate(x=tensor, i=index, v=value)
