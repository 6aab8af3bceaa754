"""JAX on CPU, many rows: grouped matmuls of blocks, with their gradients.

P rows, sorted by group; E groups; D input and F output width.

`blocks.py` describes the formulation. The gradients of a product are two
products, whose gradients are products again.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from keras_moe.kernels.block_sizes import block_sizes
from keras_moe.kernels.jax.loop import Block, map_blocks
from keras_moe.kernels.jax.reverse_only import ReverseOnly, second_gradients
from keras_moe.types import Tensor


@ReverseOnly
@jax.jit
def matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""

    def block(
        rows: Sequence[Tensor], matrix: Tensor
    ) -> tuple[Sequence[Tensor], None]:
        return (rows[0] @ matrix,), None

    (y,), _ = map_group_blocks(
        block, (x,), kernel, group_sizes, (kernel.shape[-1],)
    )
    return y[: x.shape[0]]


@jax.jit
def matmul_forward(
    x: Tensor, kernel: Tensor, group_sizes: Tensor
) -> tuple[Tensor, Any]:
    """Return the product and the residuals of its gradient."""
    return matmul(x, kernel, group_sizes), (x, kernel, group_sizes)


@jax.jit
def matmul_backward(residuals: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of `x` and `kernel`, and None for the sizes."""
    x, kernel, group_sizes = residuals
    return *_matmul_gradients(x, kernel, group_sizes, dy), None


matmul.defvjp(matmul_forward, matmul_backward)


@ReverseOnly
@jax.jit
def _matmul_gradients(
    x: Tensor, kernel: Tensor, group_sizes: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor]:
    """Return `dy kernel^T`, and `x^T dy` of each group."""

    def block(
        rows: Sequence[Tensor], matrix: Tensor
    ) -> tuple[Sequence[Tensor], Tensor]:
        x_rows, dy_rows = rows
        return (dy_rows @ matrix.T,), outer(x_rows, dy_rows)

    (dx,), dkernel = map_group_blocks(
        block, (x, dy), kernel, group_sizes, (x.shape[-1],), summed=True
    )
    return dx[: x.shape[0]], dkernel


def _matmul_gradients_forward(
    x: Tensor, kernel: Tensor, group_sizes: Tensor, dy: Tensor
) -> tuple[Any, Any]:
    gradients = _matmul_gradients(x, kernel, group_sizes, dy)
    return gradients, (x, kernel, group_sizes, dy)


@jax.jit
def _matmul_gradients_backward(
    residuals: Any, cotangents: Any
) -> tuple[Any, ...]:
    return second_gradients(matmul, _matmul_gradients, residuals, cotangents)


_matmul_gradients.defvjp(_matmul_gradients_forward, _matmul_gradients_backward)


def map_group_blocks(
    block: Block,
    rows: Sequence[Tensor],
    weights: Any,
    group_sizes: Tensor,
    widths: Sequence[int],
    summed: bool = False,
) -> tuple[Sequence[Tensor], Any]:
    """Run `map_blocks` with the sizes of `block_sizes`."""
    sizes = block_sizes(rows[0].shape[0], group_sizes.shape[0])
    return map_blocks(block, rows, weights, group_sizes, widths, sizes, summed)


def outer(a: Tensor, b: Tensor) -> Tensor:
    """Return `a^T b`, summed over the rows in float32 or better."""
    wide = jnp.promote_types(a.dtype, "float32")
    return jnp.matmul(a.T, b, preferred_element_type=wide)
