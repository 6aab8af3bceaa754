"""JAX on CPU, few rows per expert (decoding): products without copies.

P rows, sorted by group; E groups; D input and F output width; B rows per block.

XLA copies the slice of the bank that a matrix product reads. For many rows the
copy is small compared with the product; for one row it takes most of the time.
A sum of multiples of a matrix's rows is fused with the slices and reads them
in place, for one row at the rate of memory. The gradients are those of
`blocks.py`.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from keras_moe.kernels.block_sizes import few_rows_size
from keras_moe.kernels.jax import blocks
from keras_moe.kernels.jax.loop import Block, map_blocks
from keras_moe.kernels.jax.matmul_blocks import matmul_backward, matmul_forward
from keras_moe.kernels.jax.reverse_only import ReverseOnly
from keras_moe.kernels.jax.varying import varying_alike
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.types import Activation, Tensor

AT_ONCE = 8  # rows of a matrix per step; with 4 or 16 it is slower


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    return _grouped_matmul(x, kernel, group_sizes)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Run the whole network on one block before the next block."""
    return _grouped_ffn(activation, remat, x, weights, group_sizes)


@ReverseOnly
@jax.jit
def _grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    def block(
        rows: Sequence[Tensor], expert: Tensor
    ) -> tuple[Sequence[Tensor], None]:
        return (_product(rows[0], kernel, expert[0]),), None

    return _map(block, x, group_sizes, kernel.shape[-1])


_grouped_matmul.defvjp(matmul_forward, matmul_backward)


@partial(ReverseOnly, static=2)
@partial(jax.jit, static_argnums=(0, 1))
def _grouped_ffn(
    activation: Activation,
    remat: bool,
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
) -> Tensor:
    def linear(
        expert: Tensor, rows: Tensor, bank: Tensor, bias: Tensor | None
    ) -> Tensor:
        y = _product(rows, bank, expert[0])
        return y if bias is None else y + bias[expert[0]]

    def block(
        rows: Sequence[Tensor], expert: Tensor
    ) -> tuple[Sequence[Tensor], None]:
        linear_of = partial(linear, expert)
        return (ffn(rows[0], weights, activation, linear_of),), None

    return _map(block, x, group_sizes, weights.down_kernel.shape[-1])


_grouped_ffn.defvjp(blocks.grouped_ffn_forward, blocks.grouped_ffn_backward)


def _map(block: Block, x: Tensor, group_sizes: Tensor, width: int) -> Tensor:
    """Run `map_blocks` with the expert's number instead of its weights."""
    num_rows, num_groups = x.shape[0], group_sizes.shape[0]
    size = few_rows_size(num_rows, num_groups)
    experts = jnp.arange(num_groups)[:, None]
    (y,), _ = map_blocks(block, (x,), experts, group_sizes, (width,), (size,))
    return y[:num_rows]


def _product(rows: Tensor, bank: Tensor, expert: Tensor) -> Tensor:
    """Return `rows @ bank[expert]`, `(B, F)`, a few matrix rows at a time."""
    _, depth, width = bank.shape
    wide = jnp.promote_types(rows.dtype, "float32")

    def add(y: Tensor, start: Any, count: int) -> Tensor:
        for d in range(count):
            row = lax.dynamic_slice(bank, (expert, start + d, 0), (1, 1, width))
            column = lax.dynamic_slice_in_dim(rows, start + d, 1, axis=1)
            y = y + column.astype(wide) * row[0].astype(wide)
        return y

    y = lax.fori_loop(
        0,
        depth // AT_ONCE,
        lambda i, y: add(y, i * AT_ONCE, AT_ONCE),
        varying_alike(jnp.zeros((rows.shape[0], width), wide), rows, bank),
    )
    rest = depth % AT_ONCE
    return add(y, depth - rest, rest).astype(rows.dtype)
