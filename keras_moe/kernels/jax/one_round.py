"""JAX: one round of an exchange of rows.

D and D' widths, E experts, P routed pairs of one device, N devices that share
the experts, M rows from one of them to another.

XLA needs static shapes, but the number of rows that a device sends is data. So
a round sends M rows, padding included, from each device to each.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from keras_moe.kernels.forced import is_reference
from keras_moe.kernels.jax.row_ops import linear_map
from keras_moe.types import Tensor


class Way(NamedTuple):
    """A connection from each device along a mesh axis to each of them.

    axis: name of the mesh axis.
    devices: N, the devices along it.
    places: M, the rows per round from one device to another.
    ragged: whether only actual rows are sent, without padding.
    """

    axis: str
    devices: int
    places: int
    ragged: bool


Compute: TypeAlias = Callable[[tuple[Tensor, ...], Tensor, Tensor], Tensor]
"""`compute(tensors, rows, group_sizes)`: the outputs of this device's
experts."""


def is_ragged(mesh: jax.sharding.Mesh) -> bool:
    """Return whether `ragged_all_to_all` exists, which XLA lacks on CPU."""
    platform: str = mesh.devices.flat[0].platform
    return platform != "cpu"


def run_round(
    compute: Compute,
    way: Way,
    number: int | Tensor,
    tensors: tuple[Tensor, ...],
    rows: Tensor,
    counts: Tensor,
) -> Tensor:
    """Run one round of rows through their experts.

    Args:
        compute: `compute(tensors, rows, group_sizes)`, which runs this
            device's experts.
        way: The connection between the devices that share the experts.
        number: The number of the round. It sends the rows M * number ... of
            each pair of devices.
        tensors: Arguments of `compute` that have gradients.
        rows: `(P, D)`, sorted by expert.
        counts: int32 `(N, E / N)`. Rows for each device and expert.

    Returns:
        `(P, D')`, zero for the rows of other rounds.
    """
    sent, source, place = _plan(way, number, counts, rows.shape[0])
    packed = _permuted(rows, source, place)
    got = lax.all_to_all(sent, way.axis, 0, 0)
    arrived = _carry(way, packed, jnp.sum(sent, 1), jnp.sum(got, 1))
    order, inverse = _by_expert(got, way.places)
    outputs = compute(
        tensors, _permuted(arrived, order, inverse), jnp.sum(got, axis=0)
    )
    outputs = _permuted(outputs, inverse, order)
    back = _carry(way, outputs, jnp.sum(got, 1), jnp.sum(sent, 1))
    return _permuted(back, place, source)


def _plan(
    way: Way, number: int | Tensor, counts: Tensor, num_rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return which rows are sent in this round.

    Returns:
        Rows for each device and expert, `(N, E / N)`; the row at each place
        of the buffer, `(N * M,)`, P for none; the place of each row, `(P,)`,
        N * M for none.
    """
    low = number * way.places
    ends = jnp.cumsum(counts, axis=1)
    totals = ends[:, -1]
    sent = jnp.clip(ends, low, low + way.places)
    sent -= jnp.clip(ends - counts, low, low + way.places)
    starts = jnp.cumsum(totals) - totals
    slot = low + jnp.arange(way.places)
    source = jnp.where(slot < totals[:, None], starts[:, None] + slot, num_rows)
    row = jnp.arange(num_rows)
    to = jnp.searchsorted(jnp.cumsum(totals), row, side="right")
    rank = row - starts[jnp.minimum(to, way.devices - 1)] - low
    here = (to < way.devices) & (rank >= 0) & (rank < way.places)
    nowhere = way.devices * way.places
    place = jnp.where(here, to * way.places + rank, nowhere)
    return sent, source.reshape(-1), place


def _by_expert(got: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """Return the order that sorts arrived rows by expert, and its inverse.

    Unused places come last. `got` is `(N, E / N)`, the rows from each device.
    """
    ends = jnp.cumsum(got, axis=1)
    slot = jnp.arange(places)
    expert = jax.vmap(partial(jnp.searchsorted, side="right"), (0, None))(
        ends, slot
    )
    order = jnp.argsort(expert.reshape(-1), stable=True)
    inverse = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    return order, inverse


def _carry(way: Way, packed: Tensor, sent: Tensor, got: Tensor) -> Tensor:
    """Send M places to each device and receive as many: `(N * M, D)`."""
    if not way.ragged:
        return lax.all_to_all(packed, way.axis, 0, 0, tiled=True)
    starts = jnp.arange(way.devices, dtype="int32") * way.places
    mine = lax.axis_index(way.axis) * way.places
    return lax.ragged_all_to_all(
        packed,
        jnp.zeros_like(packed),
        starts,
        sent.astype("int32"),
        jnp.full((way.devices,), mine, "int32"),
        got.astype("int32"),
        axis_name=way.axis,
    )


def _permuted(x: Tensor, source: Tensor, place: Tensor) -> Tensor:
    """Return the rows source[i] of `x`, zero if there is no such row.

    `place` holds the place of each row of `x` in the result, so that the
    gradient is a gather, too.
    """
    if is_reference():
        return _by_source(x, source, place)
    return linear_map(_by_source, _by_place, x, source, place)


def _by_source(x: Tensor, source: Tensor, place: Tensor) -> Tensor:
    return jnp.take(x, source, axis=0, mode="fill", fill_value=0)


def _by_place(x: Tensor, source: Tensor, place: Tensor) -> Tensor:
    return jnp.take(x, place, axis=0, mode="fill", fill_value=0)
