"""JAX: tokens to their experts' devices by all-to-all, and back.

T tokens, D hidden_dim, F intermediate_dim, E experts, P routed pairs.

What each function does is said in `protocol.py`. `jax.shard_map` runs one
shard of the tokens on each device; around it XLA partitions the program as
ever. What travels between shards is in `exchange_rounds.py`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
from jax import lax
from jax.sharding import PartitionSpec

from keras_moe.kernels.exchange import Bank, Pairs, Part, rows_of_way
from keras_moe.kernels.jax.exchange_rounds import Way, in_rounds, is_ragged
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


def is_spread(shard: Any, num_rows: int | Tensor) -> bool:
    """Where `keras.distribution` has a distribution."""
    known = isinstance(num_rows, int)
    return known and keras.distribution.distribution() is not None


def num_token_shards(bank: Bank) -> int:
    """Returns in how many equal parts the tokens lie."""
    layout = layout_of(bank)
    return layout.size(*layout.token_axes)


def mix_across(
    mix: Callable,
    bank: Bank,
    rows: Tensor,
    pairs: Pairs,
    pairs_per_token: int | None,
    most_rows: int | Tensor | None = None,
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
    token_index, expert_index, weights = (
        jnp.pad(x, added, constant_values=v)
        for x, v in zip(pairs[:3], fill, strict=True)
    )
    return rows, Pairs(token_index, expert_index, weights, pairs.num_experts)


def _weight_specs(bank, layout):
    names = {"expert": layout.expert_axis, "inner": layout.model_axis}
    specs = [
        PartitionSpec(*(names.get(name) for name in axes)) for axes in bank.axes
    ]
    return (*specs, *(PartitionSpec() for _ in bank.constants))


def _exchanged(mix, run, num_experts, most_rows, layout, rows, pairs, tensors):
    """One shard whose pairs follow its tokens: rows go to their experts."""
    token_index, expert_index, combine_weights = pairs
    first = _index(layout.token_axes) * rows.shape[0]
    pairs = Pairs(
        token_index - first, expert_index, combine_weights, num_experts
    )

    def compute(tensors, rows, group_sizes):
        return run(tensors, rows, group_sizes, _part(layout))

    def send(rows, group_sizes, pair_order):
        if layout.expert_axis is None:
            return compute(tensors, rows, group_sizes)
        devices = layout.size(layout.expert_axis)
        places = rows_of_way(rows.shape[0], num_experts, devices, most_rows)
        way = Way(layout.expert_axis, devices, places, is_ragged(layout.mesh))
        # Devices of all groups must leave the loop of rounds together.
        agree = None if most_rows is not None else layout.token_axes
        return in_rounds(compute, way, agree, tensors, rows, group_sizes)

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
    token_index = token_index - rows.shape[0] * _index(tuple(others))
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


def _index(axes):
    """The number of this device along mesh axes; 0 along none."""
    return lax.axis_index(axes) if axes else jnp.zeros((), "int32")


def _part(layout):
    axes = layout.token_axes + (layout.model_axis,) * bool(layout.model_axis)
    index = _index(axes)
    if layout.model_axis is None:
        return Part(index, jnp.ones(()))
    return Part(index, (lax.axis_index(layout.model_axis) == 0).astype("f4"))


def _whole(outputs, layout):
    """Sums what the parts of an expert's inner width give."""
    if layout.model_axis is None:
        return outputs
    return lax.psum(outputs, layout.model_axis)
