"""JAX on CPU, few rows an expert (decoding): weights in slices of cache size.

P rows, sorted by group; E groups; D input and F output width; B rows a block.

XLA copies the slice that a product reads. For many rows that copy is small
beside the product; for one row it is the work, and a copy of a whole matrix
goes to memory and back. Here a product runs over slices of D that stay in the
processor's cache: a matrix is read from memory once. Gradients are
`jax_blocks.py`'s.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from keras_moe.kernels import jax_blocks
from keras_moe.kernels.jax_loop import map_blocks
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.types import Activation, Tensor

SLICE_BYTES = 3 << 18  # three quarters of a MiB: half of a usual second cache


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    return _grouped_matmul(x, kernel, group_sizes)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Up, gate, activation and down of one block before the next one's."""
    return _grouped_ffn(activation, remat, x, weights, group_sizes)


@jax.custom_vjp
@jax.jit
def _grouped_matmul(x, kernel, group_sizes):
    def block(rows, expert):
        return (_product(rows[0], kernel, expert[0]),), None

    return _map(block, x, group_sizes, kernel.shape[-1])


_grouped_matmul.defvjp(
    jax_blocks._grouped_matmul_forward, jax_blocks._grouped_matmul_backward
)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
@partial(jax.jit, static_argnums=(0, 1))
def _grouped_ffn(activation, remat, x, weights, group_sizes):
    def linear(expert, rows, bank, bias):
        y = _product(rows, bank, expert[0])
        return y if bias is None else y + bias[expert[0]]

    def block(rows, expert):
        linear_of = partial(linear, expert)
        return (ffn(rows[0], weights, activation, linear_of),), None

    return _map(block, x, group_sizes, weights.down_kernel.shape[-1])


_grouped_ffn.defvjp(
    jax_blocks._grouped_ffn_forward, jax_blocks._grouped_ffn_backward
)


def _map(block, x, group_sizes, width):
    """`map_blocks` with the number of the expert in place of its weights."""
    num_rows, num_groups = x.shape[0], group_sizes.shape[0]
    size = min(max(1, num_rows), -(-2 * num_rows // num_groups) or 1)
    experts = jnp.arange(num_groups)[:, None]
    (y,), _ = map_blocks(block, (x,), experts, group_sizes, (width,), (size,))
    return y[:num_rows]


def _product(rows, bank, expert):
    """`rows @ bank[expert]`, (B, F), a slice of D at a time."""
    _, depth, width = bank.shape
    step = max(1, min(depth, SLICE_BYTES // (width * bank.dtype.itemsize)))
    wide = jnp.promote_types(rows.dtype, "float32")

    def part(start, length):
        own = lax.dynamic_slice(bank, (expert, start, 0), (1, length, width))
        piece = lax.dynamic_slice_in_dim(rows, start, length, axis=1)
        return jnp.matmul(piece, own[0], preferred_element_type=wide)

    y = lax.fori_loop(
        0,
        depth // step,
        lambda i, y: y + part(i * step, step),
        jnp.zeros((rows.shape[0], width), wide),
    )
    if depth % step:
        y = y + part(depth - depth % step, depth % step)
    return y.astype(rows.dtype)
