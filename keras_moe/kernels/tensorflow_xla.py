"""The grouped kernels on TensorFlow under XLA: one loop over blocks of rows.

P rows, sorted by group; E groups; D input and F output width; B rows a block.

One loop over a number of blocks that is data: a step slices a block's rows
and its expert's weights and writes at the sorted place, where the next block
overwrites what was too much. XLA fixes P when it compiles, after this code has
been traced, so B cannot depend on a P that the trace does not know. The
`xla.dynamic_slice` family exists only inside an XLA computation, which is
where this file runs.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from keras_moe.kernels import tensorflow_ffn as one
from keras_moe.kernels.reference import FFNWeights
from keras_moe.types import Activation, Tensor

UNKNOWN_P_BLOCK_ROWS = 64


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""

    @tf.custom_gradient
    def forward(x, kernel):
        def block(rows, slices):
            return [tf.matmul(rows[0], slices[0])], []

        (y,), _ = _map_blocks(
            block, [x], [kernel], group_sizes, [kernel.shape[-1]]
        )

        def backward(dy):
            def block(rows, slices):
                dx_rows = tf.matmul(rows[1], slices[0], transpose_b=True)
                return [dx_rows], [_outer(rows[0], rows[1])]

            (dx,), (dkernel,) = _map_blocks(
                block,
                [x, dy],
                [kernel],
                group_sizes,
                [x.shape[-1]],
                summed=True,
            )
            return dx, dkernel

        return y, backward

    return forward(x, kernel)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Up, gate, activation and down of one block before the next one's."""
    names = [n for n, w in weights._asdict().items() if w is not None]
    banks = [getattr(weights, name) for name in names]

    def named(slices):
        return FFNWeights(**dict(zip(names, slices, strict=True)))

    @tf.custom_gradient
    def forward(x, *banks):
        return _ffn_forward(x, banks, named, group_sizes, activation, remat)

    return forward(x, *banks)


def _ffn_forward(x, banks, named, group_sizes, activation, remat):
    _, inner, width = named(banks).down_kernel.shape
    kept = 0 if remat else 1 + (named(banks).gate_kernel is not None)

    def block(rows, slices):
        w = named(slices)
        before = one.before_activation(rows[0], w)
        y = one.after_activation(activation, before, w)
        return [y, *before[:kept]], []

    (y, *before), _ = _map_blocks(
        block, [x], banks, group_sizes, [width, *[inner] * kept]
    )

    def backward(dy):
        def block(rows, slices):
            (x, dy, *before), w = rows, named(slices)
            before = before or one.before_activation(x, w)
            wide = one.wide_dtype(x.dtype)
            dx, dw = one.gradients(x, dy, before, w, activation, wide)
            return [dx], dw

        (dx,), dbanks = _map_blocks(
            block,
            [x, dy, *before],
            banks,
            group_sizes,
            [x.shape[-1]],
            summed=True,
        )
        return dx, *dbanks

    return y, backward


def _map_blocks(block, rows, banks, group_sizes, widths, summed=False):
    """Runs `block(rows, slices)` over every group's blocks.

    Args:
        block: function of a list of (B, .) row blocks, zero outside the
            group, and a list of one expert's weights; returns a list of
            (B, width) outputs and, where `summed`, a list like the banks.
        rows: list of (P, .) tensors.
        banks: list of (E, ...) tensors.
        group_sizes: (E,) int32.
        widths: the widths of the outputs.
        summed: whether the second result is summed over the blocks.

    Returns:
        The outputs, each (P, width), zero behind the last group, and the sums
        (an empty list unless `summed`), each (E, ...).
    """
    dtype, num_rows = rows[0].dtype, tf.shape(rows[0])[0]
    size = UNKNOWN_P_BLOCK_ROWS
    if rows[0].shape[0] is not None:
        size = _block_rows(rows[0].shape[0], group_sizes.shape[0])
    starts, ends, experts, count = _blocks(group_sizes, num_rows, size)
    rows = [tf.pad(r, [[0, size], [0, 0]]) for r in rows]
    outputs = [tf.zeros((num_rows + size, w), dtype) for w in widths]
    sums = [tf.zeros(b.shape, one.wide_dtype(b.dtype)) for b in banks if summed]

    def step(i, outputs, sums):
        start, expert = starts[i], experts[i]
        mine = (start + tf.range(size) < ends[i])[:, None]
        block_rows = [_where(mine, _slice(r, start, size)) for r in rows]
        slices = [_slice(b, expert, 1)[0] for b in banks]
        values, parts = block(block_rows, slices)
        outputs = [
            _update(o, tf.cast(_where(mine, v), dtype), start)
            for o, v in zip(outputs, values, strict=True)
        ]
        sums = [
            _update(s, _slice(s, expert, 1) + tf.cast(p, s.dtype)[None], expert)
            for s, p in zip(sums, parts, strict=True)
        ]
        return i + 1, outputs, sums

    _, outputs, sums = tf.while_loop(
        lambda i, *_: i < count, step, (tf.constant(0), outputs, sums)
    )
    sums = [tf.cast(s, b.dtype) for s, b in zip(sums, banks, strict=False)]
    return [o[:num_rows] for o in outputs], sums


def _block_rows(num_rows, num_groups):
    """B, a quarter more than the even share: most groups fit in one."""
    share = -(-5 * num_rows // (4 * num_groups))
    rounded = share if share <= 8 else -(-share // 8) * 8
    return max(1, min(rounded, num_rows))


def _blocks(group_sizes, num_rows, size):
    """Each block's first row, its group's end, its expert; and how many."""
    num_groups = group_sizes.shape[0]
    limit = -(-num_rows // size) + num_groups
    blocks = -(-group_sizes // size)
    ends, last = tf.cumsum(group_sizes), tf.cumsum(blocks)
    block = tf.range(limit)
    past = tf.cast(block[:, None] >= last[None, :], tf.int32)
    expert = tf.minimum(tf.reduce_sum(past, axis=1), num_groups - 1)
    before = tf.gather(last - blocks, expert)
    end = tf.gather(ends, expert)
    start = tf.gather(ends - group_sizes, expert) + (block - before) * size
    return start, end, expert, last[-1]


def _slice(tensor, start, length):
    """`tensor[start : start + length]` with a start that is data."""
    starts = tf.pad(start[None], [[0, len(tensor.shape) - 1]])
    return xla.dynamic_slice(tensor, starts, [length, *tensor.shape[1:]])


def _update(tensor, part, start):
    starts = tf.pad(start[None], [[0, len(tensor.shape) - 1]])
    return xla.dynamic_update_slice(tensor, part, starts)


def _where(mine, rows):
    return tf.where(mine, rows, tf.zeros_like(rows))


def _outer(a, b):
    """`a^T b`, summed over the rows: `(., .)`."""
    wide = one.wide_dtype(a.dtype)
    return tf.matmul(tf.cast(a, wide), tf.cast(b, wide), transpose_a=True)
