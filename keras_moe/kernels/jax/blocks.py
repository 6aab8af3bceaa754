"""JAX on CPU, many rows: blocks of sorted rows, one expert per block.

P rows, sorted by group; E groups; D input and F output width; B rows per block.

The loop is in `loop.py`. JAX cannot differentiate a loop of unknown length in
reverse mode, so that the gradient is another such loop, written by hand. Both
are jitted here, so that calls outside of `jit` compile them only once.

The gradients can be differentiated again, to any order in reverse mode: those
of a product are two products, and those of an expert are taken of the
composition that defines it.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from keras_moe.kernels.jax.matmul_blocks import map_group_blocks, matmul, outer
from keras_moe.kernels.jax.reverse_only import ReverseOnly
from keras_moe.kernels.reference import (
    FFNWeights,
    before_activation,
    composition,
    ffn,
    hidden_units,
    linear,
)
from keras_moe.types import Activation, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    return matmul(x, kernel, group_sizes)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Run the whole network on one block before the next block."""
    return _grouped_ffn(activation, remat, x, weights, group_sizes)


@partial(ReverseOnly, static=2)
@partial(jax.jit, static_argnums=(0, 1))
def _grouped_ffn(
    activation: Activation,
    remat: bool,
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
) -> Tensor:
    def block(
        rows: Sequence[Tensor], w: FFNWeights
    ) -> tuple[Sequence[Tensor], None]:
        return (ffn(rows[0], w, activation),), None

    width = weights.down_kernel.shape[-1]
    (y,), _ = map_group_blocks(block, (x,), weights, group_sizes, (width,))
    return y[: x.shape[0]]


@partial(jax.jit, static_argnums=(0, 1))
def grouped_ffn_forward(
    activation: Activation,
    remat: bool,
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
) -> tuple[Tensor, Any]:
    """Return the outputs and the residuals of their gradient."""
    if remat:
        y = _grouped_ffn(activation, remat, x, weights, group_sizes)
        return y, (x, weights, group_sizes, [])
    y, before = _kept_ffn(activation, x, weights, group_sizes)
    return y, (x, weights, group_sizes, before)


@partial(jax.jit, static_argnums=(0, 1))
def grouped_ffn_backward(
    activation: Activation, remat: bool, residuals: Any, dy: Tensor
) -> tuple[Any, ...]:
    """Return the gradients of `x` and `weights`, and None for the sizes."""
    return *_ffn_gradients(activation, *residuals, dy), None


_grouped_ffn.defvjp(grouped_ffn_forward, grouped_ffn_backward)


@partial(ReverseOnly, static=1)
@partial(jax.jit, static_argnums=0)
def _kept_ffn(
    activation: Activation, x: Tensor, weights: FFNWeights, group_sizes: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the outputs and the inputs of the activation."""

    def block(
        rows: Sequence[Tensor], w: FFNWeights
    ) -> tuple[Sequence[Tensor], None]:
        before = before_activation(rows[0], w)
        hidden = hidden_units(activation, *before)
        return (linear(hidden, w.down_kernel, w.down_bias), *before), None

    inner = weights.up_kernel.shape[-1]
    kept = 1 if weights.gate_kernel is None else 2
    widths = (weights.down_kernel.shape[-1], *[inner] * kept)
    (y, *before), _ = map_group_blocks(
        block, (x,), weights, group_sizes, widths
    )
    return y[: x.shape[0]], before


def _kept_ffn_forward(
    activation: Activation, x: Tensor, weights: FFNWeights, group_sizes: Tensor
) -> tuple[Any, Any]:
    y, before = _kept_ffn(activation, x, weights, group_sizes)
    return (y, before), (x, weights, group_sizes, before)


def _kept_ffn_backward(
    activation: Activation, residuals: Any, cotangents: Any
) -> tuple[Any, ...]:
    """Ignore the cotangents of `before`.

    Only `_ffn_gradients` reads `before`, and gives it no gradient.
    """
    dy, _ = cotangents
    return *_ffn_gradients(activation, *residuals, dy), None


_kept_ffn.defvjp(_kept_ffn_forward, _kept_ffn_backward)


@partial(ReverseOnly, static=1)
@partial(jax.jit, static_argnums=0)
def _ffn_gradients(
    activation: Activation,
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    before: list[Tensor],
    dy: Tensor,
) -> tuple[Tensor, FFNWeights]:
    def block(
        rows: Sequence[Tensor], w: FFNWeights
    ) -> tuple[Sequence[Tensor], FFNWeights]:
        dy_rows, x_rows, *before_rows = rows
        before_rows = before_rows or before_activation(x_rows, w)
        hidden, vjp = jax.vjp(partial(hidden_units, activation), *before_rows)
        d_up, *d_gate = vjp(dy_rows @ w.down_kernel.T)
        dx = d_up @ w.up_kernel.T
        gate_kernel = gate_bias = None
        if w.gate_kernel is not None:
            dx = dx + d_gate[0] @ w.gate_kernel.T
            gate_kernel = outer(x_rows, d_gate[0])
            gate_bias = _sum_rows(d_gate[0], w.gate_bias)
        return (dx,), FFNWeights(
            up_kernel=outer(x_rows, d_up),
            down_kernel=outer(hidden, dy_rows),
            up_bias=_sum_rows(d_up, w.up_bias),
            down_bias=_sum_rows(dy_rows, w.down_bias),
            gate_kernel=gate_kernel,
            gate_bias=gate_bias,
        )

    rows, width = (dy, x, *before), (x.shape[-1],)
    (dx,), dweights = map_group_blocks(
        block, rows, weights, group_sizes, width, summed=True
    )
    return dx[: x.shape[0]], dweights


def _ffn_gradients_forward(
    activation: Activation,
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    before: list[Tensor],
    dy: Tensor,
) -> tuple[Any, Any]:
    gradients = _ffn_gradients(activation, x, weights, group_sizes, before, dy)
    return gradients, (x, weights, group_sizes, dy)


def _ffn_gradients_backward(
    activation: Activation, residuals: Any, cotangents: Any
) -> tuple[Any, ...]:
    """Differentiate the composition, of which `before` is a function."""
    x, weights, group_sizes, dy = residuals

    def compose(x: Tensor, weights: FFNWeights) -> Tensor:
        return composition(x, weights, group_sizes, activation, grouped_matmul)

    def gradients(
        x: Tensor, weights: FFNWeights, dy: Tensor
    ) -> tuple[Tensor, FFNWeights]:
        _, vjp = jax.vjp(compose, x, weights)
        found: tuple[Tensor, FFNWeights] = vjp(dy)
        return found

    _, vjp = jax.vjp(gradients, x, weights, dy)
    dx, dweights, d_dy = vjp(cotangents)
    return dx, dweights, None, None, d_dy


_ffn_gradients.defvjp(_ffn_gradients_forward, _ffn_gradients_backward)


def _sum_rows(rows: Tensor, like: Tensor | None) -> Tensor | None:
    return None if like is None else jnp.sum(rows, axis=0, dtype="float32")
