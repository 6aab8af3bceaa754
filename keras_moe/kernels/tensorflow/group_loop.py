"""TensorFlow: a loop over the groups that have rows.

P rows, sorted by group; E groups. It has no gradient of its own:
`loop.py` writes it.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from keras_moe.types import Tensor

PARALLEL_STEPS = 2


class Groups(NamedTuple):
    """order: the groups with rows; empty: the others; starts, sizes: (E,)."""

    order: Tensor
    empty: Tensor
    starts: Tensor
    sizes: Tensor


def groups_of(sizes: Tensor) -> Groups:
    """Returns the groups of these sizes, int32 `(E,)`."""
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
