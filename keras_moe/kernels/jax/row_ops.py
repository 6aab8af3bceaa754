"""JAX: row operations that `keras.ops` lacks, or that are slow there.

`protocol/` describes what each function does.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_moe.kernels.jax.reverse_only import ReverseOnly
from keras_moe.types import Tensor

FEW = 16  # the most columns that are found one after another


def top_k_index(scores: Tensor, top_k: int) -> Tensor:
    """Use `lax.top_k`, with two exceptions.

    XLA runs `lax.top_k` on all rows on each device of a mesh. Finding the
    largest score K times keeps the rows where they are. If shapes are
    symbolic, the rows are sorted: TensorFlow 2.21 cannot load an exported
    `lax.top_k`.
    """
    scores = jnp.where(jnp.abs(scores) > 0, scores, 0)
    if not all(isinstance(n, int) for n in (*scores.shape, top_k)):
        order = jnp.argsort(scores, axis=-1, descending=True)
        return order[:, :top_k].astype("int32")
    if keras.distribution.distribution() is None or top_k > FEW:
        return jax.lax.top_k(scores, top_k)[1].astype("int32")
    columns = jnp.arange(scores.shape[-1])
    free = jnp.ones(scores.shape, bool)
    found = []
    for _ in range(top_k):
        largest = jnp.max(
            scores, -1, keepdims=True, where=free, initial=-jnp.inf
        )
        best = jnp.argmax(free & (scores >= largest), axis=-1)
        free &= columns != best[..., None]
        found.append(best)
    return jnp.stack(found, axis=-1).astype("int32")


def shape_of_count(count: Tensor, otherwise: int) -> int:
    """Return `otherwise`, so that calls inside and outside of `jit` agree."""
    return otherwise


def linear_map(
    forward: Callable[..., Tensor],
    transpose: Callable[..., Tensor],
    x: Tensor,
    *index: Tensor,
) -> Tensor:
    """Use a custom gradient with the indices as arguments, not captured.

    Inside `jax.checkpoint`, `scan`, and `cond` the gradient is traced when
    captured values are out of scope.
    """
    return _linear_map(forward, transpose, x, index)


@partial(ReverseOnly, static=2)
def _linear_map(
    forward: Callable[..., Tensor],
    transpose: Callable[..., Tensor],
    x: Tensor,
    index: tuple[Tensor, ...],
) -> Tensor:
    return forward(x, *index)


def _linear_map_forward(
    forward: Callable[..., Tensor],
    transpose: Callable[..., Tensor],
    x: Tensor,
    index: tuple[Tensor, ...],
) -> tuple[Tensor, Any]:
    return _linear_map(forward, transpose, x, index), index


def _linear_map_backward(
    forward: Callable[..., Tensor],
    transpose: Callable[..., Tensor],
    index: tuple[Tensor, ...],
    dy: Tensor,
) -> tuple[Tensor, tuple[None, ...]]:
    return _linear_map(transpose, forward, dy, index), (None,) * len(index)


_linear_map.defvjp(_linear_map_forward, _linear_map_backward)


def require(valid: Tensor, message: str) -> Tensor:
    """Check the values, except while `jax.jit`, `grad`, or `vmap` trace."""
    if not isinstance(valid, jax.core.Tracer) and not bool(valid.all()):
        raise ValueError(message)
    return valid


def known_int(value: Tensor) -> int | None:
    """Read the value, except while `jax.jit`, `grad`, or `vmap` trace."""
    concrete = isinstance(value, jax.Array)
    concrete = concrete and not isinstance(value, jax.core.Tracer)
    return int(value) if concrete else None


def shapes_known(x: Tensor) -> str:
    """Return `"sizes"`: other shapes need another program."""
    return "sizes"


def smaller_size(one: int | Tensor, other: int | Tensor) -> int | Tensor:
    """Use `min_dim`, which also handles symbolic dimensions."""
    return jax.core.min_dim(one, other)


def output_shapes(function: Callable[..., Any], *args: Any) -> Any:
    """Use `jax.eval_shape`, which keeps symbolic dimensions."""
    return jax.eval_shape(function, *args)
