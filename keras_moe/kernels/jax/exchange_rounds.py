"""JAX: an exchange of rows in rounds of fixed size.

D and D' widths, E experts, P routed pairs of one device, N devices that share
the experts, M rows from one of them to another.

XLA wants static shapes and the rows a device sends are data: rows go in
rounds of M from each device to each. With a capacity one round holds all.
Without, the counts are exchanged first and rounds follow until the fullest
way is empty: the first is plain, so that balanced routing costs one
all-to-all there and one back; the others are a loop that computes again in
the gradient what it did. A way that holds `m` rows takes `ceil(m / M)` rounds,
so that no more than `N * (m + M)` rows are sent.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from keras_moe.kernels.forced import is_reference
from keras_moe.kernels.jax.reverse_only import ReverseOnly
from keras_moe.kernels.jax.row_ops import linear_map
from keras_moe.types import Tensor


class Way(NamedTuple):
    """From each of `devices` devices along `axis` to each, M `places` a round;
    `ragged` where only the rows that there are travel."""

    axis: str
    devices: int
    places: int
    ragged: bool


def is_ragged(mesh) -> bool:
    """Returns whether there is `ragged_all_to_all`, which XLA's CPU has not."""
    return mesh.devices.flat[0].platform != "cpu"


def in_rounds(
    compute: Callable,
    way: Way,
    agree: tuple[str, ...] | None,
    tensors: tuple,
    rows: Tensor,
    group_sizes: Tensor,
) -> Tensor:
    """Sends rows through their experts, wherever these are.

    Args:
        compute: `compute(tensors, rows, group_sizes)`, of this device's
            experts.
        way: between the devices that share the experts.
        agree: mesh axes of the devices that make as many rounds; None where
            one round holds all.
        tensors: what `compute` is given, and has gradients.
        rows: `(P, D)`, sorted by expert.
        group_sizes: int32 `(E,)`.

    Returns:
        `(P, D')`.
    """
    counts = jnp.reshape(group_sizes, (way.devices, -1))
    outputs = _round(compute, way, 0, tensors, rows, counts)
    if agree is None or way.places >= rows.shape[0]:
        return outputs
    later = partial(_round, compute, way)
    if is_reference():
        most = -(-rows.shape[0] // way.places)
        return _all_rounds(later, most, outputs, tensors, rows, counts)
    fullest = lax.pmax(jnp.max(jnp.sum(counts, axis=1)), agree)
    rounds = -(-fullest // way.places)
    return _later_rounds(later, outputs, rounds, tensors, rows, counts)


def _round(compute, way, number, tensors, rows, counts):
    """Sends the rows `(P, D)`, sorted by expert, that stand at M * number ...
    of each way through their experts: `(P, D')`, zero elsewhere. `counts` is
    `(N, E / N)`, rows for each device and expert."""
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


def _plan(way, number, counts, num_rows):
    """Who goes in this round.

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


def _by_expert(got, places):
    """The order that sorts arrived rows by expert, unused places last; and
    its inverse. `got` is `(N, E / N)`, rows from each device."""
    ends = jnp.cumsum(got, axis=1)
    slot = jnp.arange(places)
    expert = jax.vmap(partial(jnp.searchsorted, side="right"), (0, None))(
        ends, slot
    )
    order = jnp.argsort(expert.reshape(-1), stable=True)
    inverse = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    return order, inverse


def _carry(way, packed, sent, got):
    """Each device's M places to each device: `(N * M, D)`, both."""
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


def _permuted(x, source, place):
    """Row i of the result is row source[i] of `x`, zero where there is none;
    `place` is where each row of `x` went, by which its gradient is a gather,
    too."""
    if is_reference():
        return _by_source(x, source, place)
    return linear_map(_by_source, _by_place, x, source, place)


def _by_source(x, source, place):
    return jnp.take(x, source, axis=0, mode="fill", fill_value=0)


def _by_place(x, source, place):
    return jnp.take(x, place, axis=0, mode="fill", fill_value=0)


def _all_rounds(later, most, outputs, tensors, rows, counts):
    """Adds rounds 1 ... most - 1, of which the last may be empty."""
    for number in range(1, most):
        outputs = outputs + later(number, tensors, rows, counts)
    return outputs


@partial(ReverseOnly, static=1)
def _later_rounds(later, outputs, rounds, tensors, rows, counts):
    """Adds rounds 1, 2 ... to the outputs of round 0."""

    def step(number, outputs):
        return outputs + later(number, tensors, rows, counts)

    return lax.fori_loop(1, rounds, step, outputs)


def _later_rounds_forward(later, outputs, rounds, *inputs):
    return _later_rounds(later, outputs, rounds, *inputs), (rounds, *inputs)


def _later_rounds_backward(later, kept, dy):
    dtensors, drows = _rounds_gradients(later, *kept, dy)
    return dy, None, dtensors, drows, None


_later_rounds.defvjp(_later_rounds_forward, _later_rounds_backward)


@partial(ReverseOnly, static=1)
def _rounds_gradients(later, rounds, tensors, rows, counts, dy):
    """Those of the tensors, None for integers, and of the rows."""
    floats = [jnp.issubdtype(x.dtype, jnp.floating) for x in tensors]

    def run(chosen, rows, number):
        found = iter(chosen)
        mixed = tuple(
            next(found) if f else x
            for f, x in zip(floats, tensors, strict=True)
        )
        return later(number, mixed, rows, counts)

    def step(number, sums):
        _, vjp = jax.vjp(partial(run, number=number), chosen, rows)
        return jax.tree.map(jnp.add, sums, vjp(dy))

    chosen = [x for x, f in zip(tensors, floats, strict=True) if f]
    start = jax.tree.map(jnp.zeros_like, (chosen, rows))
    dchosen, drows = lax.fori_loop(1, rounds, step, start)
    found = iter(dchosen)
    return tuple(next(found) if f else None for f in floats), drows


def _refuse(later, *args):
    raise NotImplementedError(
        "An exchange of rows in rounds, without `capacity_factor`, has no "
        "second derivatives: the number of rounds is data. Received: a second "
        'derivative. Call the mixture inside `with keras_moe.kernels.use("'
        'reference"):`, where it is fixed, or set `capacity_factor`.'
    )


_rounds_gradients.defvjp(
    lambda later, *args: (_rounds_gradients(later, *args), None), _refuse
)
