"""The grouped kernels on TensorFlow under XLA: one loop over blocks of rows.

P rows, sorted by group; E groups; D input and F output width; B rows a block.

The twin of `jax.py`, with `tf.while_loop` for `fori_loop`; see there for the
idea. XLA fixes P when it compiles, after this code has been traced, so B
cannot depend on a P that the trace does not know. The `xla.dynamic_slice`
family exists only inside an XLA computation, which is where this file runs.
"""

import tensorflow as tf
from tensorflow.compiler.tf2xla.python import xla

from keras_moe.kernels.blocks import block_rows
from keras_moe.kernels.reference import FFNWeights, linear
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
) -> Tensor:
    """Up, gate, activation and down of one block before the next one's."""
    names = [n for n, w in weights._asdict().items() if w is not None]
    banks = [getattr(weights, name) for name in names]

    def named(slices):
        return FFNWeights(**dict(zip(names, slices, strict=True)))

    @tf.custom_gradient
    def forward(x, *banks):
        return _ffn_forward(x, banks, named, group_sizes, activation)

    return forward(x, *banks)


def _ffn_forward(x, banks, named, group_sizes, activation):
    _, inner, width = named(banks).down_kernel.shape
    kept = 1 if named(banks).gate_kernel is None else 2

    def block(rows, slices):
        w = named(slices)
        before = _before_activation(rows[0], w)
        hidden = _hidden(activation, *before)
        return [linear(hidden, w.down_kernel, w.down_bias), *before], []

    (y, *before), _ = _map_blocks(
        block, [x], banks, group_sizes, [width, *[inner] * kept]
    )

    def backward(dy):
        def block(rows, slices):
            return _ffn_backward_block(rows, named(slices), activation)

        (dx,), dbanks = _map_blocks(
            block,
            [dy, x, *before],
            banks,
            group_sizes,
            [x.shape[-1]],
            summed=True,
        )
        return dx, *dbanks

    return y, backward


def _ffn_backward_block(rows, w, activation):
    dy, x, *before = rows
    with tf.GradientTape() as tape:
        tape.watch(before)
        hidden = _hidden(activation, *before)
    d_hidden = tf.matmul(dy, w.down_kernel, transpose_b=True)
    d_up, *d_gate = tape.gradient(hidden, before, output_gradients=d_hidden)
    dx = tf.matmul(d_up, w.up_kernel, transpose_b=True)
    gate_kernel = gate_bias = None
    if d_gate:
        dx += tf.matmul(d_gate[0], w.gate_kernel, transpose_b=True)
        gate_kernel = _outer(x, d_gate[0])
        gate_bias = _sum_rows(d_gate[0], w.gate_bias)
    dw = FFNWeights(
        up_kernel=_outer(x, d_up),
        down_kernel=_outer(hidden, dy),
        up_bias=_sum_rows(d_up, w.up_bias),
        down_bias=_sum_rows(dy, w.down_bias),
        gate_kernel=gate_kernel,
        gate_bias=gate_bias,
    )
    return [dx], [d for d in dw if d is not None]


def _before_activation(rows, w):
    """Returns `[up]`, or `[up, gate]` of a gated expert, each (B, F)."""
    up = linear(rows, w.up_kernel, w.up_bias)
    if w.gate_kernel is None:
        return [up]
    return [up, linear(rows, w.gate_kernel, w.gate_bias)]


def _hidden(activation, up, gate=None):
    return activation(up) if gate is None else activation(gate) * up


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
        size = block_rows(rows[0].shape[0], group_sizes.shape[0])
    starts, ends, experts, count = _blocks(group_sizes, num_rows, size)
    rows = [tf.pad(r, [[0, size], [0, 0]]) for r in rows]
    outputs = [tf.zeros((num_rows + size, w), dtype) for w in widths]
    sums = [tf.zeros(b.shape, _wide(b.dtype)) for b in banks if summed]

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


def _wide(dtype):
    """The dtype gradients are summed in: float32 or better."""
    return dtype if dtype.size >= 4 else tf.float32


def _outer(a, b):
    """`a^T b`, summed over the rows: `(., .)`."""
    wide = _wide(a.dtype)
    return tf.matmul(tf.cast(a, wide), tf.cast(b, wide), transpose_a=True)


def _sum_rows(rows, like):
    if like is None:
        return None
    return tf.reduce_sum(tf.cast(rows, _wide(rows.dtype)), axis=0)
