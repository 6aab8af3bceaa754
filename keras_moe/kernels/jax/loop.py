"""JAX on CPU: the loop over blocks of rows that the formulations share.

P rows, sorted by group; E groups; B rows per block.

XLA needs static shapes, but the number of rows that an expert receives is
data. A group that fits into the largest size is one block, otherwise several.
A `fori_loop` over the blocks, whose number is data, slices a block's rows and
its expert's weights, and writes the outputs at the block's offset. A `switch`
selects the smallest size that holds the block. Whatever a block writes beyond
its group is overwritten by the next block. Only rows and results are operands
of the switch: a buffer of outputs would be copied for every block.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from keras_moe.kernels.jax.varying import varying_alike
from keras_moe.types import Tensor

Block: TypeAlias = Callable[
    [Sequence[Tensor], Any], tuple[Sequence[Tensor], Any]
]
"""`block(rows, weights)`: outputs of one block, and gradients or None."""


def map_blocks(
    block: Block,
    rows: Sequence[Tensor],
    weights: Any,
    group_sizes: Tensor,
    widths: Sequence[int],
    sizes: tuple[int, ...],
    summed: bool = False,
) -> tuple[Sequence[Tensor], Any]:
    """Run a function on the blocks of all groups.

    Args:
        block: `block(rows, weights)`. Its arguments are a sequence of row
            blocks `(B, .)`, zero outside of the group if `summed`, and one
            expert's weights. It returns a sequence of outputs `(B, width)`
            and, if `summed`, a pytree like the weights, otherwise None.
        rows: Arrays of P rows, or of as many rows as the outputs have.
        weights: Pytree of `(E, ...)` arrays.
        group_sizes: int32 `(E,)`. The number of rows per group.
        widths: The widths of the outputs.
        sizes: The sizes that B may have, in ascending order.
        summed: bool. Whether the second result is summed over the blocks.
            Defaults to `False`.

    Returns:
        The outputs, each `(P + the largest B, width)`, zero behind the last
        group; and the sums, each `(E, ...)`, or None unless `summed`.
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
    if summed:  # the branch of a group's later blocks, which add to the sums
        branches.append(partial(_run, block, largest, largest, True))

    def step(i: Tensor, carry: Any) -> Any:
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


def _padded(rows: Tensor, length: Any) -> Tensor:
    return jnp.pad(rows, ((0, length - rows.shape[0]), (0, 0)))


def _switch(
    index: Tensor, branches: Sequence[Callable[..., Any]], *operands: Any
) -> Any:
    if len(branches) == 1:
        return branches[0](*operands)
    return lax.switch(index, branches, *operands)


def _run(
    block: Block,
    size: int,
    largest: int,
    adds: bool,
    rows: Sequence[Tensor],
    own: Any,
    sums: Any,
    start: Tensor,
    length: Tensor,
    expert: Tensor,
) -> tuple[Sequence[Tensor], Any]:
    """Run one block of a static size; return padded outputs and its sums."""
    mine = (jnp.arange(size) < length)[:, None]
    blocks = [lax.dynamic_slice_in_dim(r, start, size) for r in rows]
    if sums is not None:  # rows of other groups must not be summed
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


def _blocks(
    group_sizes: Tensor, num_rows: Any, size: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the blocks of all groups.

    Returns:
        For each block its first row, the end of its group, its expert, and
        whether it is the first one of its group; and the number of blocks.
    """
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


def _accumulator(weight: Tensor) -> Tensor:
    """Return zeros to sum a gradient in, in float32 for half precision."""
    return jnp.zeros(weight.shape, jnp.promote_types(weight.dtype, "float32"))


def _index(array: Tensor, i: Tensor) -> Tensor:
    return lax.dynamic_index_in_dim(array, i, keepdims=False)
