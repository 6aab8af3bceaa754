"""JAX on TPU and GPU: the compiler's own grouped matmul.

P rows, sorted by group; E groups; D input and F output width.

`jax.lax.ragged_dot` needs no loop and no count on the host, and JAX has its
first gradients. On CPU it multiplies every row by every expert's matrix. The
tests check its values there; its speed on accelerators was not measured.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from keras_moe.kernels import reference
from keras_moe.kernels.jax.reverse_only import ReverseOnly, second_gradients
from keras_moe.kernels.reference import FFNWeights
from keras_moe.types import Activation, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    return _grouped_matmul(x, kernel, group_sizes)


def _product(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    y = lax.ragged_dot(_within(x, group_sizes), kernel, group_sizes)
    return _within(y, group_sizes)


_grouped_matmul = ReverseOnly(_product)


@ReverseOnly
def _gradients(
    x: Tensor, kernel: Tensor, group_sizes: Tensor, dy: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of JAX, which it does not differentiate again."""
    _, vjp = jax.vjp(lambda x, k: _product(x, k, group_sizes), x, kernel)
    found: tuple[Tensor, Tensor] = vjp(dy)
    return found


def _gradients_backward(residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    return second_gradients(_grouped_matmul, _gradients, residuals, cotangents)


_grouped_matmul.defvjp(
    lambda *args: (_grouped_matmul(*args), args),
    lambda residuals, dy: (*_gradients(*residuals, dy), None),
)
_gradients.defvjp(lambda *args: (_gradients(*args), args), _gradients_backward)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Run the composition: the compiler fuses the operations in between."""

    def run(x: Tensor, weights: FFNWeights) -> Tensor:
        y = reference.composition(
            x, weights, group_sizes, activation, grouped_matmul
        )
        return _within(y, group_sizes)

    return jax.checkpoint(run)(x, weights) if remat else run(x, weights)


def _within(rows: Tensor, group_sizes: Tensor) -> Tensor:
    """Return the rows with zeros behind the last group."""
    mine = jnp.arange(rows.shape[0]) < jnp.sum(group_sizes)
    return jnp.where(mine[:, None], rows, 0)
