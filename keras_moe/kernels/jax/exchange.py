"""JAX: send tokens to their experts' devices by all-to-all, and back.

T tokens, D hidden_dim, F intermediate_dim, E experts, P routed pairs.

`protocol/` describes what each function does. `jax.shard_map` runs one shard
of the tokens on each device; outside of it XLA partitions the program as
usual. The exchange between shards is in `exchange_rounds.py`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
from jax import lax
from jax.sharding import PartitionSpec

from keras_moe.kernels.exchange import (
    Bank,
    ExpertShard,
    Mix,
    Pairs,
    Part,
    RunBank,
    rows_of_way,
)
from keras_moe.kernels.jax.exchange_rounds import in_rounds
from keras_moe.kernels.jax.one_round import Way, is_ragged
from keras_moe.types import Tensor


class Layout(NamedTuple):
    """How tokens and experts lie on a mesh.

    mesh: the `jax.sharding.Mesh`.
    token_axes: mesh axes of the tokens, the expert axis last.
    expert_axis, model_axis: mesh axes of E and of F; None if these are not
        divided.
    """

    mesh: Any
    token_axes: tuple[str, ...]
    expert_axis: str | None
    model_axis: str | None

    def size(self, *axes: str) -> int:
        """Return the number of devices along mesh axes."""
        size = 1
        for axis in axes:
            size *= self.mesh.shape[axis]
        return size


def layout_of(bank: Bank) -> Layout:
    """Return the layout that `keras.distribution` gives."""
    distribution = keras.distribution.distribution()
    empty = (0, 1)  # a shape that every number of devices divides
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


def is_spread(shard: ExpertShard | None, num_rows: int | Tensor) -> bool:
    """Return whether `keras.distribution` has a distribution."""
    known = isinstance(num_rows, int)
    return known and keras.distribution.distribution() is not None


def num_token_shards(bank: Bank) -> int:
    """Return the number of devices along the mesh axes of the tokens."""
    layout = layout_of(bank)
    return layout.size(*layout.token_axes)


def mix_across(
    mix: Mix,
    bank: Bank,
    rows: Tensor,
    pairs: Pairs,
    pairs_per_token: int | None,
    most_rows: int | Tensor | None = None,
) -> Tensor:
    """Dispatch, run experts, and combine on each device's shard of tokens."""
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


def _filled(
    rows: Tensor, pairs: Pairs, pairs_per_token: int | None, layout: Layout
) -> tuple[Tensor, Pairs]:
    """Pad rows and pairs to equal shards; padding pairs have no expert."""
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


def _weight_specs(bank: Bank, layout: Layout) -> tuple[PartitionSpec, ...]:
    names: dict[str | None, str | None] = {
        "expert": layout.expert_axis,
        "inner": layout.model_axis,
    }
    specs = [
        PartitionSpec(*(names.get(name) for name in axes)) for axes in bank.axes
    ]
    return (*specs, *(PartitionSpec() for _ in bank.constants))


def _exchanged(
    mix: Mix,
    run: RunBank,
    num_experts: int,
    most_rows: int | None,
    layout: Layout,
    rows: Tensor,
    pairs: tuple[Tensor, Tensor, Tensor],
    tensors: tuple[Tensor, ...],
) -> Tensor:
    """Run one shard that has its tokens' pairs: rows are sent to experts."""
    token_index, expert_index, combine_weights = pairs
    first = _index(layout.token_axes) * rows.shape[0]
    own_pairs = Pairs(
        token_index - first, expert_index, combine_weights, num_experts
    )

    def compute(
        tensors: tuple[Tensor, ...], rows: Tensor, group_sizes: Tensor
    ) -> Tensor:
        return run(tensors, rows, group_sizes, _part(layout))

    def send(rows: Tensor, group_sizes: Tensor, pair_order: Tensor) -> Tensor:
        if layout.expert_axis is None:
            return compute(tensors, rows, group_sizes)
        devices = layout.size(layout.expert_axis)
        places = rows_of_way(rows.shape[0], num_experts, devices, most_rows)
        way = Way(layout.expert_axis, devices, places, is_ragged(layout.mesh))
        # Devices of all groups must leave the loop of rounds together.
        agree = None if most_rows is not None else layout.token_axes
        return in_rounds(compute, way, agree, tensors, rows, group_sizes)

    return _whole(mix(send, rows, own_pairs), layout)


def _gathered(
    mix: Mix,
    run: RunBank,
    num_experts: int,
    most_rows: int | None,
    layout: Layout,
    rows: Tensor,
    pairs: tuple[Tensor, Tensor, Tensor],
    tensors: tuple[Tensor, ...],
) -> Tensor:
    """Run one shard whose pairs may be of any token.

    The tokens are gathered, each device computes the pairs of its own experts,
    and the sums are sent back.
    """
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
    own_pairs = Pairs(
        jnp.clip(token_index, 0, rows.shape[0] - 1),
        jnp.where(mine, expert_index, own_experts),
        jnp.where(mine, combine_weights, 0),
        own_experts,
    )

    def send(rows: Tensor, group_sizes: Tensor, pair_order: Tensor) -> Tensor:
        return run(tensors, rows, group_sizes, _part(layout))

    outputs = _whole(mix(send, rows, own_pairs), layout)
    if layout.expert_axis is None:
        return outputs
    return lax.psum_scatter(outputs, layout.expert_axis, tiled=True)


def _index(axes: tuple[str, ...]) -> Tensor:
    """Return the number of this device along mesh axes; 0 along none."""
    return lax.axis_index(axes) if axes else jnp.zeros((), "int32")


def _part(layout: Layout) -> Part:
    if layout.model_axis is None:
        return Part(_index(layout.token_axes), jnp.ones(()))
    index = _index((*layout.token_axes, layout.model_axis))
    return Part(index, (lax.axis_index(layout.model_axis) == 0).astype("f4"))


def _whole(outputs: Tensor, layout: Layout) -> Tensor:
    """Sum the outputs of the parts of an expert's inner width."""
    if layout.model_axis is None:
        return outputs
    return lax.psum(outputs, layout.model_axis)
