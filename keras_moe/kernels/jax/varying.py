"""JAX: values that differ between the devices of a `jax.shard_map`.

Inside a `jax.shard_map` the type of an array lists the mesh axes along which
it varies. JAX unifies these for its own operations. A loop's start values must
vary as the loop's results do, and the gradients of a custom rule as the rule's
arguments: both are unified here. Outside a `jax.shard_map`, and with
`check_vma=False`, no array has such axes.
"""

from typing import Any

import jax
from jax import lax


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


def _varying(array, axes):
    missing = tuple(sorted(axes - _axes(array)))
    return lax.pcast(array, missing, to="varying")


def _axes(array):
    return jax.typeof(array).manual_axis_type.varying
