"""One loop over blocks of rows, for TensorFlow inside an XLA computation.

P rows, sorted by group; E groups; B rows a block.

What `jax/loop.py` is to JAX, and why it looks as it does is said there: a
loop over a number of blocks that is data, and a switch for the least size
that holds a block. XLA fixes P when it compiles, after this code has been
traced; where the trace does not know P, B has one size. The
`xla.dynamic_slice` family exists only inside an XLA computation.
"""

from collections.abc import Callable
from functools import partial

import tensorflow as tf

from keras_moe._tensorflow import xla_slice, xla_update_slice
from keras_moe.kernels.block_sizes import block_sizes
from keras_moe.kernels.tensorflow.one_expert import wide_dtype
from keras_moe.types import Tensor

UNKNOWN_P_BLOCK_ROWS = 64


def map_blocks(
    block: Callable,
    rows: list[Tensor],
    banks: list[Tensor],
    group_sizes: Tensor,
    widths: list[int],
    summed: bool = False,
    sizes: tuple[int, ...] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Runs `block(rows, slices)` over every group's blocks.

    Args:
        block: function of a list of (B, .) row blocks, zero outside the
            group where `summed`, and a list of one expert's weights; returns
            a list of (B, width) outputs and, where `summed`, a list like the
            banks.
        rows: list of (P, .) tensors.
        banks: list of (E, ...) tensors.
        group_sizes: (E,) int32.
        widths: the widths of the outputs.
        summed: whether the second result is summed over the blocks.
        sizes: the values B may have, ascending; None for those of
            `block_sizes.py`, or one where the trace does not know P.

    Returns:
        The outputs, each (P, width), zero behind the last group, and the sums
        (an empty list unless `summed`), each (E, ...).
    """
    dtype, num_rows = rows[0].dtype, tf.shape(rows[0])[0]
    if sizes is None:
        sizes = _sizes(rows[0].shape[0], group_sizes.shape[0])
    largest = sizes[-1]
    starts, ends, experts, first, count = _blocks(
        group_sizes, num_rows, largest
    )
    rows = [tf.pad(r, [[0, largest], [0, 0]]) for r in rows]
    outputs = [tf.zeros((num_rows + largest, w), dtype) for w in widths]
    sums = [tf.zeros(b.shape, wide_dtype(b.dtype)) for b in banks if summed]
    variants = [(size, False) for size in sizes]
    if summed:  # of a group's later blocks, which add to the sums
        variants.append((largest, True))

    def step(i, outputs, sums):
        start, expert = starts[i], experts[i]
        length = tf.minimum(ends[i] - start, largest)
        choice = tf.reduce_sum(tf.cast(length > tf.constant(sizes), tf.int32))
        if summed:
            choice = tf.where(first[i], choice, len(sizes))
        own = [_slice(b, expert, 1)[0] for b in banks]
        run = partial(
            _run, block, largest, rows, own, sums, start, length, expert
        )
        values, parts = _switch(choice, [partial(run, *v) for v in variants])
        outputs = [
            _update(o, v, start) for o, v in zip(outputs, values, strict=True)
        ]
        sums = [
            _update(s, p[None], expert)
            for s, p in zip(sums, parts, strict=True)
        ]
        return i + 1, outputs, sums

    _, outputs, sums = tf.while_loop(
        lambda i, *_: i < count, step, (tf.constant(0), outputs, sums)
    )
    sums = [tf.cast(s, b.dtype) for s, b in zip(sums, banks, strict=False)]
    return [o[:num_rows] for o in outputs], sums


def _sizes(num_rows, num_groups):
    if num_rows is None:
        return (UNKNOWN_P_BLOCK_ROWS,)
    return block_sizes(num_rows, num_groups)


def _switch(choice, branches):
    if len(branches) == 1:
        return branches[0]()
    return tf.switch_case(choice, branches)


def _run(block, largest, rows, own, sums, start, length, expert, size, adds):
    """One block of a static size: its outputs, filled up, and its sums."""
    mine = (tf.range(size) < length)[:, None]
    blocks = [_slice(r, start, size) for r in rows]
    if sums:  # where rows of another group would be summed
        blocks = [_where(mine, b) for b in blocks]
    values, parts = block(blocks, own)
    values = [
        tf.pad(
            tf.cast(_where(mine, v), rows[0].dtype),
            [[0, largest - size], [0, 0]],
        )
        for v in values
    ]
    parts = [tf.cast(p, s.dtype) for p, s in zip(parts, sums, strict=True)]
    if adds:
        before = [_slice(s, expert, 1)[0] for s in sums]
        parts = [s + p for s, p in zip(before, parts, strict=True)]
    return values, parts


def _blocks(group_sizes, num_rows, size):
    """Each block's first row, its group's end, its expert, whether it is its
    group's first; and how many there are."""
    num_groups = group_sizes.shape[0]
    limit = -(-num_rows // size) + num_groups
    blocks = -(-group_sizes // size)
    ends, last = tf.cumsum(group_sizes), tf.cumsum(blocks)
    block = tf.range(limit)
    past = tf.cast(block[:, None] >= last[None, :], tf.int32)
    expert = tf.minimum(tf.reduce_sum(past, axis=1), num_groups - 1)
    before = block - tf.gather(last - blocks, expert)
    end = tf.gather(ends, expert)
    start = tf.gather(ends - group_sizes, expert) + before * size
    return start, end, expert, before == 0, last[-1]


def _slice(tensor, start, length):
    """`tensor[start : start + length]` with a start that is data."""
    starts = tf.pad(start[None], [[0, len(tensor.shape) - 1]])
    return xla_slice(tensor, starts, [length, *tensor.shape[1:]])


def _update(tensor, part, start):
    starts = tf.pad(start[None], [[0, len(tensor.shape) - 1]])
    return xla_update_slice(tensor, part, starts)


def _where(mine, rows):
    return tf.where(mine, rows, tf.zeros_like(rows))
