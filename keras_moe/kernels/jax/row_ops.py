"""JAX: the primitives that keras.ops has not.

What each does is said in `primitives.py`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import keras
from jax.extend.core import get_opaque_trace_state

from keras_moe.kernels.jax_reverse_only import ReverseOnly
from keras_moe.kernels.jax_varying import varying_alike as varying_alike
from keras_moe.types import Tensor

FEW = 16  # columns that are found one after another


def compiled(
    function: Callable, variables: Sequence, written: Sequence = ()
) -> Callable:
    """Variables would be constants of the program: they are arguments."""
    variables = list(variables)

    @jax.jit
    def run(values, *args):
        pairs = list(zip(variables, values, strict=True))
        with keras.StatelessScope(state_mapping=pairs) as scope:
            outputs = function(*args)
        return outputs, [scope.get_current_value(v) for v in written]

    def call(*args):
        outputs, new_values = run([v.value for v in variables], *args)
        for variable, value in zip(written, new_values, strict=True):
            variable.assign(value)
        return outputs

    return call


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


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Nests inside the gradient of a training step."""
    return jax.value_and_grad(function)(x)


def trace_here() -> Any:
    """It holds the trace weakly."""
    return get_opaque_trace_state()


def is_traced_here(value: Tensor) -> bool:
    """By the private attributes with which JAX 0.10 compares traces."""
    trace = getattr(value, "_trace", None)
    return trace is not None and trace is trace_here()._trace_ref()


def writes_leave_traces() -> bool:
    """The new value itself has to come out."""
    return False


def outside_of_traces():
    """A constant is computed at once."""
    return jax.ensure_compile_time_eval()
