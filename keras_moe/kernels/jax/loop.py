"""One loop over blocks of rows: what JAX's formulations on CPU share.

P rows, sorted by group; E groups; B rows a block.

XLA wants static shapes and the rows an expert receives are data. Each group
is one block where it fits into the largest size, and several where it does
not; one `fori_loop` over a number of blocks that is data slices a block's rows
and its expert's weights, and writes at the block's offset. A `switch` picks
the least size that holds the block. What a block writes beyond its group is
written again by the next block. Only rows and results pass through the
switch: a buffer that did would be copied for every block.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from keras_moe.kernels.jax.varying import varying_alike
from keras_moe.types import Tensor


def map_blocks(
    block: Callable,
    rows: tuple,
    weights,
    group_sizes: Tensor,
    widths: tuple[int, ...],
    sizes: tuple[int, ...],
    summed: bool = False,
):
    """Runs `block(rows, weights of the expert)` over every group's blocks.

    Args:
        block: function of a tuple of (B, .) row blocks, zero outside the
            group, and one expert's weights; returns a tuple of (B, width)
            outputs and, where `summed`, a pytree shaped like the weights.
        rows: tuple of arrays of P rows, or of as many as the outputs have.
        weights: pytree of (E, ...) arrays.
        group_sizes: (E,) int32.
        widths: the widths of the outputs.
        sizes: the values B may have, ascending.
        summed: whether the second result is summed over the blocks.

    Returns:
        The outputs, each (P + the largest B, width), zero behind the last
        group, and the sums (None unless `summed`), each (E, ...).
    """
    num_rows, dtype = rows[0].shape[0], rows[0].dtype
    largest = sizes[-1]
    starts, ends, experts, first, count = _blocks(
        group_sizes, num_rows, largest
    )
    rows = tuple(_padded(r, num_rows + largest) for r in rows)
    outputs = tuple(jnp.zeros((num_rows + largest, w), dtype) for w in widths)
    sums = jax.tree.map(_accumulator, weights) if summed else None
    start = (outputs, sums)
    outputs, sums = varying_alike(start, rows, weights, group_sizes)
    branches = [partial(_run, block, size, largest, False) for size in sizes]
    if summed:  # of a group's later blocks, which add to the sums
        branches.append(partial(_run, block, largest, largest, True))

    def step(i, carry):
        outputs, sums = carry
        start, expert = starts[i], experts[i]
        length = jnp.minimum(ends[i] - start, largest)
        size_index = jnp.sum(length > jnp.array(sizes))
        if summed:
            size_index = jnp.where(first[i], size_index, len(sizes))
        own = jax.tree.map(lambda w: _index(w, expert), weights)
        values, parts = _switch(
            size_index, branches, rows, own, sums, start, length, expert
        )
        outputs = tuple(
            lax.dynamic_update_slice_in_dim(o, v, start, 0)
            for o, v in zip(outputs, values, strict=True)
        )
        if summed:
            sums = jax.tree.map(
                lambda s, p: lax.dynamic_update_index_in_dim(s, p, expert, 0),
                sums,
                parts,
            )
        return outputs, sums

    outputs, sums = lax.fori_loop(0, count, step, (outputs, sums))
    if summed:
        sums = jax.tree.map(lambda s, w: s.astype(w.dtype), sums, weights)
    return outputs, sums


def _padded(rows, length):
    return jnp.pad(rows, ((0, length - rows.shape[0]), (0, 0)))


def _switch(index, branches, *operands):
    if len(branches) == 1:
        return branches[0](*operands)
    return lax.switch(index, branches, *operands)


def _run(block, size, largest, adds, rows, own, sums, start, length, expert):
    """One block of a static size: its outputs, filled up, and its sums."""
    mine = (jnp.arange(size) < length)[:, None]
    blocks = [lax.dynamic_slice_in_dim(r, start, size) for r in rows]
    if sums is not None:  # where rows of another group would be summed
        blocks = [jnp.where(mine, b, 0) for b in blocks]
    values, parts = block(blocks, own)
    values = tuple(
        jnp.pad(
            jnp.where(mine, v, 0).astype(rows[0].dtype),
            ((0, largest - size), (0, 0)),
        )
        for v in values
    )
    if adds:
        parts = jax.tree.map(
            lambda s, p: _index(s, expert) + p.astype(s.dtype), sums, parts
        )
    elif sums is not None:
        parts = jax.tree.map(lambda s, p: p.astype(s.dtype), sums, parts)
    return values, parts


def _blocks(group_sizes, num_rows, size):
    """Each block's first row, its group's end, its expert, whether it is its
    group's first; and how many there are."""
    limit = -(-num_rows // size) + group_sizes.shape[0]
    ends = jnp.cumsum(group_sizes)
    counts = -(-group_sizes // size)
    last = jnp.cumsum(counts)
    block = jnp.arange(limit)
    expert = jnp.searchsorted(last, block, side="right")
    expert = jnp.minimum(expert, group_sizes.shape[0] - 1)
    before = block - (last[expert] - counts[expert])
    start = ends[expert] - group_sizes[expert] + before * size
    return start, ends[expert], expert, before == 0, last[-1]


def _accumulator(weight):
    """Zeros to sum a gradient in; half-precision ones are summed in float32."""
    return jnp.zeros(weight.shape, jnp.promote_types(weight.dtype, "float32"))


def _index(array, i):
    return lax.dynamic_index_in_dim(array, i, keepdims=False)
