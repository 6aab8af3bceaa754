"""TensorFlow under XLA: the loop over blocks of rows.

P rows, sorted by group; E groups; B rows per block.

`jax/loop.py` is the same for JAX, and describes its design: a loop over the
blocks, whose number is data, and a switch for the smallest size that holds a
block. XLA fixes P when it compiles, after this code was traced. If P is
unknown during the trace, B has a single size. `xla.dynamic_slice` and its
relatives run only inside of XLA.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import tensorflow as tf

from keras_moe._tensorflow import xla_slice, xla_update_slice
from keras_moe.kernels.block_sizes import block_sizes
from keras_moe.kernels.tensorflow.one_expert import wide_dtype
from keras_moe.types import Tensor

UNKNOWN_P_BLOCK_ROWS = 64


Block: TypeAlias = Callable[
    [Sequence[Tensor], Sequence[Tensor]], tuple[list[Tensor], list[Tensor]]
]
"""`block(rows, slices)`: outputs of one block, and gradients or none."""


def map_blocks(
    block: Block,
    rows: Sequence[Tensor],
    banks: Sequence[Tensor],
    group_sizes: Tensor,
    widths: Sequence[int],
    summed: bool = False,
    sizes: tuple[int, ...] | None = None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run a function on the blocks of all groups.

    Args:
        block: `block(rows, slices)`. Its arguments are a list of row blocks
            `(B, .)`, zero outside of the group if `summed`, and a list of one
            expert's weights. It returns a list of outputs `(B, width)` and, if
            `summed`, a list like the banks, otherwise an empty list.
        rows: Tensors `(P, .)`.
        banks: Tensors `(E, ...)`.
        group_sizes: int32 `(E,)`. The number of rows per group.
        widths: The widths of the outputs.
        summed: bool. Whether the second result is summed over the blocks.
            Defaults to `False`.
        sizes: The sizes that B may have, in ascending order. `None` (the
            default) for those of `block_sizes.py`, or for a single size if P
            is unknown during the trace.

    Returns:
        The outputs, each `(P, width)`, zero behind the last group; and the
        sums, each `(E, ...)`, or an empty list unless `summed`.
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
    if summed:  # the variant of a group's later blocks, which add to the sums
        variants.append((largest, True))

    def step(
        i: Tensor, outputs: list[Tensor], sums: list[Tensor]
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
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


def _sizes(num_rows: int | None, num_groups: int) -> tuple[int, ...]:
    if num_rows is None:
        return (UNKNOWN_P_BLOCK_ROWS,)
    return block_sizes(num_rows, num_groups)


def _switch(choice: Tensor, branches: Sequence[Callable[[], Any]]) -> Any:
    if len(branches) == 1:
        return branches[0]()
    return tf.switch_case(choice, branches)


def _run(
    block: Block,
    largest: int,
    rows: Sequence[Tensor],
    own: list[Tensor],
    sums: list[Tensor],
    start: Tensor,
    length: Tensor,
    expert: Tensor,
    size: int,
    adds: bool,
) -> tuple[list[Tensor], list[Tensor]]:
    """Run one block of a static size; return padded outputs and its sums."""
    mine = (tf.range(size) < length)[:, None]
    blocks = [_slice(r, start, size) for r in rows]
    if sums:  # rows of other groups must not be summed
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


def _blocks(
    group_sizes: Tensor, num_rows: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the blocks of all groups.

    Returns:
        For each block its first row, the end of its group, its expert, and
        whether it is the first one of its group; and the number of blocks.
    """
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


def _slice(tensor: Tensor, start: Tensor, length: int) -> Tensor:
    """Return `tensor[start : start + length]`, with a start that is data."""
    starts = tf.pad(start[None], [[0, len(tensor.shape) - 1]])
    return xla_slice(tensor, starts, [length, *tensor.shape[1:]])


def _update(tensor: Tensor, part: Tensor, start: Tensor) -> Tensor:
    starts = tf.pad(start[None], [[0, len(tensor.shape) - 1]])
    return xla_update_slice(tensor, part, starts)


def _where(mine: Tensor, rows: Tensor) -> Tensor:
    return tf.where(mine, rows, tf.zeros_like(rows))
