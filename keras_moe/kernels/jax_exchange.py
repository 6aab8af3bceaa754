"""JAX: tokens to their experts' devices by all-to-all, and back.

T tokens, D hidden_dim, E experts, P routed pairs of one token shard, N
devices that share the experts, M rows from one of them to another.

What each function does is said in `exchange.py`. `jax.shard_map` runs one
shard of the tokens on each device; around it XLA partitions the program as
ever. XLA wants static shapes and the rows a device sends are data: an
exchange goes in rounds of M rows from each device to each. With a capacity
one round holds all. Without, the counts are exchanged first and rounds follow
until the fullest way is empty: the first is plain, so that balanced routing
costs one all-to-all there and one back; the others are a loop that computes
again in the gradient what it did. A way that holds `m` rows takes
`ceil(m / M)` rounds, so that no more than `N * (m + M)` rows are sent.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
from jax import lax
from jax.sharding import PartitionSpec

from keras_moe.kernels.exchange import Bank, Pairs, Part, rows_of_way
from keras_moe.types import Tensor


class Layout(NamedTuple):
    """How tokens and experts lie on a mesh.

    token_axes: mesh axes of the tokens, the expert axis last.
    expert_axis, model_axis: of E and of F; None where these are whole.
    """

    mesh: Any
    token_axes: tuple[str, ...]
    expert_axis: str | None
    model_axis: str | None

    def size(self, *axes):
        """Devices along mesh axes."""
        size = 1
        for axis in axes:
            size *= self.mesh.shape[axis]
        return size


def layout_of(bank: Bank) -> Layout:
    """Returns the layout that `keras.distribution` gives."""
    distribution = keras.distribution.distribution()
    empty = (0, 1)  # fits every number of devices
    data = distribution.get_data_layout(empty).backend_layout
    batch_axes = data.spec[0] if len(data.spec) else None
    if batch_axes is None:
        batch_axes = ()
    if isinstance(batch_axes, str):
        batch_axes = (batch_axes,)
    names: dict[str, str | None] = {"expert": None, "inner": None}
    kernel = bank.variables[0]
    spec = distribution.get_variable_layout(kernel).backend_layout.spec
    for name, axis in zip(bank.axes[0], spec, strict=False):
        if name is not None and axis is not None and data.mesh.shape[axis] > 1:
            names[name] = axis
    expert_axis, model_axis = names["expert"], names["inner"]
    others = [a for a in batch_axes if a not in (expert_axis, model_axis)]
    if expert_axis is not None:
        others.append(expert_axis)
    return Layout(data.mesh, tuple(others), expert_axis, model_axis)


def num_token_shards(bank: Bank) -> int:
    """Returns in how many equal parts the tokens lie."""
    layout = layout_of(bank)
    return layout.size(*layout.token_axes)


def mix_across(
    mix, bank: Bank, rows: Tensor, pairs: Pairs, pairs_per_token, most_rows
) -> Tensor:
    """Dispatch, experts and combine on each device's shard of the tokens."""
    layout = layout_of(bank)
    num_tokens = rows.shape[0]
    rows, pairs = _filled(rows, pairs, pairs_per_token, layout)
    run_shard = _exchanged if pairs_per_token else _gathered
    run_shard = partial(
        run_shard, mix, bank.run, pairs.num_experts, most_rows, layout
    )
    tokens = PartitionSpec(layout.token_axes)
    pair_spec = tokens if pairs_per_token else PartitionSpec()
    run = jax.shard_map(
        run_shard,
        mesh=layout.mesh,
        in_specs=(tokens, (pair_spec,) * 3, _weight_specs(bank, layout)),
        out_specs=tokens,
        check_vma=False,
    )
    tensors = tuple(
        map(keras.ops.convert_to_tensor, (*bank.variables, *bank.constants))
    )
    return run(rows, tuple(pairs[:3]), tensors)[:num_tokens]


def _filled(rows, pairs, pairs_per_token, layout):
    """Rows and pairs filled up to equal shards; what is added goes nowhere."""
    missing = -rows.shape[0] % layout.size(*layout.token_axes)
    if not missing:
        return rows, pairs
    rows = jnp.pad(rows, ((0, missing), (0, 0)))
    if not pairs_per_token:
        return rows, pairs
    added = (0, missing * pairs_per_token)
    fill = (rows.shape[0] - 1, pairs.num_experts, 0)
    filled = [
        jnp.pad(x, added, constant_values=v)
        for x, v in zip(pairs[:3], fill, strict=True)
    ]
    return rows, Pairs(*filled, pairs.num_experts)


def _weight_specs(bank, layout):
    names = {"expert": layout.expert_axis, "inner": layout.model_axis}
    specs = [
        PartitionSpec(*(names.get(name) for name in axes)) for axes in bank.axes
    ]
    return (*specs, *(PartitionSpec() for _ in bank.constants))


# --- one shard --------------------------------------------------------------


def _exchanged(mix, run, num_experts, most_rows, layout, rows, pairs, tensors):
    """One shard whose pairs follow its tokens: rows go to their experts."""
    token_index, expert_index, combine_weights = pairs
    first = lax.axis_index(layout.token_axes) * rows.shape[0]
    pairs = Pairs(
        token_index - first, expert_index, combine_weights, num_experts
    )

    def compute(tensors, rows, group_sizes):
        return run(tensors, rows, group_sizes, _part(layout))

    def send(rows, group_sizes, pair_order):
        if layout.expert_axis is None:
            return compute(tensors, rows, group_sizes)
        ways = layout.size(layout.expert_axis)
        places = rows_of_way(rows.shape[0], num_experts, ways, most_rows)
        way = Way(layout.expert_axis, ways, places, _is_ragged(layout.mesh))
        counts = jnp.reshape(group_sizes, (ways, -1))
        outputs = _round(compute, way, 0, tensors, rows, counts)
        if most_rows is not None or places >= rows.shape[0]:
            return outputs
        fullest = jnp.max(jnp.sum(counts, axis=1))
        rounds = -(-lax.pmax(fullest, layout.token_axes) // places)
        later = partial(_round, compute, way)
        return _later_rounds(later, outputs, rounds, tensors, rows, counts)

    return _whole(mix(send, rows, pairs), layout)


def _gathered(mix, run, num_experts, most_rows, layout, rows, pairs, tensors):
    """One shard where a pair may be of any token: tokens are gathered, each
    device computes its own experts' pairs, and the sums go back."""
    token_index, expert_index, combine_weights = pairs
    own_experts = num_experts
    if layout.expert_axis is not None:
        rows = lax.all_gather(rows, layout.expert_axis, tiled=True)
        own_experts = num_experts // layout.size(layout.expert_axis)
        expert_index = expert_index - own_experts * lax.axis_index(
            layout.expert_axis
        )
    others = [a for a in layout.token_axes if a != layout.expert_axis]
    if others:
        token_index = token_index - rows.shape[0] * lax.axis_index(
            tuple(others)
        )
    mine = (token_index >= 0) & (token_index < rows.shape[0])
    mine &= (expert_index >= 0) & (expert_index < own_experts)
    pairs = Pairs(
        jnp.clip(token_index, 0, rows.shape[0] - 1),
        jnp.where(mine, expert_index, own_experts),
        jnp.where(mine, combine_weights, 0),
        own_experts,
    )

    def send(rows, group_sizes, pair_order):
        return run(tensors, rows, group_sizes, _part(layout))

    outputs = _whole(mix(send, rows, pairs), layout)
    if layout.expert_axis is None:
        return outputs
    return lax.psum_scatter(outputs, layout.expert_axis, tiled=True)


def _part(layout):
    axes = layout.token_axes + (layout.model_axis,) * bool(layout.model_axis)
    index = lax.axis_index(axes)
    if layout.model_axis is None:
        return Part(index, jnp.ones(()))
    return Part(index, (lax.axis_index(layout.model_axis) == 0).astype("f4"))


def _whole(outputs, layout):
    """Sums what the parts of an expert's inner width give."""
    if layout.model_axis is None:
        return outputs
    return lax.psum(outputs, layout.model_axis)


# --- the exchange -----------------------------------------------------------


class Way(NamedTuple):
    """From each of `devices` devices along `axis` to each, M `places` a round;
    `ragged` where only the rows that there are travel."""

    axis: str
    devices: int
    places: int
    ragged: bool


def _is_ragged(mesh):
    """Whether the platform has `ragged_all_to_all`: XLA's CPU has not."""
    return mesh.devices.flat[0].platform != "cpu"


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


@jax.custom_vjp
def _permuted(x, source, place):
    """Row i of the result is row source[i] of `x`, zero where there is none;
    `place` is where each row of `x` went, by which its gradient is a gather,
    too."""
    return jnp.take(x, source, axis=0, mode="fill", fill_value=0)


_permuted.defvjp(
    lambda x, source, place: (_permuted(x, source, place), (source, place)),
    lambda kept, dy: (_permuted(dy, kept[1], kept[0]), None, None),
)


# --- rounds behind the first -------------------------------------------------


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _later_rounds(later, outputs, rounds, tensors, rows, counts):
    """Adds rounds 1, 2 ... to the outputs of round 0."""

    def step(number, outputs):
        return outputs + later(number, tensors, rows, counts)

    return lax.fori_loop(1, rounds, step, outputs)


def _later_rounds_forward(later, outputs, rounds, *inputs):
    return _later_rounds(later, outputs, rounds, *inputs), (rounds, *inputs)


def _later_rounds_backward(later, kept, dy):
    rounds, tensors, rows, counts = kept
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
    dtensors = tuple(next(found) if f else None for f in floats)
    return dy, None, dtensors, drows, None


_later_rounds.defvjp(_later_rounds_forward, _later_rounds_backward)
