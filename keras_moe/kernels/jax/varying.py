"""JAX: values that differ between the devices of a `jax.shard_map`.

Inside a `jax.shard_map` the type of an array lists the mesh axes along which
it varies. JAX unifies these axes for its own operations. The initial values of
a loop must vary like its results, and the gradients of a custom rule like its
arguments: `varying_alike` unifies both. Outside of a `jax.shard_map`, and with
`check_vma=False`, no array has such axes.
"""

from typing import Any

import jax
from jax import lax

from keras_moe.types import Tensor


def varying_alike(values: Any, *others: Any) -> Any:
    """Let arrays vary along every axis along which one of them varies.

    The gradient of an array that was the same on all devices is the sum of the
    devices' gradients, as it is for JAX's own operations.

    Args:
        values: Pytree of arrays, which are returned.
        *others: Pytrees of arrays whose axes count, too.
    """
    axes: set[str] = set()
    for array in jax.tree.leaves((values, others)):
        axes |= _axes(array)
    return jax.tree.map(lambda x: _varying(x, axes), values) if axes else values


def _varying(array: Tensor, axes: set[str]) -> Tensor:
    missing = tuple(sorted(axes - _axes(array)))
    return lax.pcast(array, missing, to="varying")


def _axes(array: Tensor) -> frozenset[str]:
    axes: frozenset[str] = jax.typeof(array).manual_axis_type.varying
    return axes
