"""JAX: what `keras.ops` cannot do with rows, or does slowly.

`protocol.py` says what each function does.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras

from keras_moe.kernels.jax.reverse_only import ReverseOnly
from keras_moe.kernels.jax.varying import varying_alike as varying_alike
from keras_moe.types import Tensor

FEW = 16  # columns that are found one after another


def top_k_index(scores: Tensor, top_k: int) -> Tensor:
    """`lax.top_k` is whole on each device of a mesh, with all of its rows: K
    times the largest stays where the rows are. Where shapes are symbolic the
    rows are sorted: TensorFlow 2.21 cannot load an exported `lax.top_k`."""
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
    """Never, so that a program and a call outside of one agree."""
    return otherwise


def linear_map(
    forward: Callable, transpose: Callable, x: Tensor, *index: Tensor
) -> Tensor:
    """The indices are arguments, not captured: inside `jax.checkpoint`, `scan`
    and `cond` the gradient is traced after what it captured is gone."""
    return _linear_map(forward, transpose, x, index)


@partial(ReverseOnly, static=2)
def _linear_map(forward, transpose, x, index):
    return forward(x, *index)


def _linear_map_forward(forward, transpose, x, index):
    return _linear_map(forward, transpose, x, index), index


def _linear_map_backward(forward, transpose, index, dy):
    return _linear_map(transpose, forward, dy, index), (None,) * len(index)


_linear_map.defvjp(_linear_map_forward, _linear_map_backward)


def require(valid: Tensor, message: str) -> Tensor:
    """Not while `jax.jit`, `grad` or `vmap` trace."""
    if not isinstance(valid, jax.core.Tracer) and not bool(valid.all()):
        raise ValueError(message)
    return valid


def known_int(value: Tensor) -> int | None:
    """Not while `jax.jit`, `grad` or `vmap` trace."""
    concrete = isinstance(value, jax.Array)
    concrete = concrete and not isinstance(value, jax.core.Tracer)
    return int(value) if concrete else None


def shapes_known(x: Tensor) -> str:
    """All of them, always: other sizes are another program."""
    return "sizes"


def smaller_size(one: int | Tensor, other: int | Tensor) -> int | Tensor:
    """Of symbolic dimensions it is another symbolic dimension."""
    return jax.core.min_dim(one, other)


def output_shapes(function: Callable, *args: Any) -> Any:
    """Symbolic dimensions stay in the shapes."""
    return jax.eval_shape(function, *args)
