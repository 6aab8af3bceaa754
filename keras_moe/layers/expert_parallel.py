"""Dispatch, experts, and combine, where they lie on several devices.

T tokens, U units (tokens or examples), W their width, E experts, F
intermediate_dim, P routed pairs.
"""

from functools import partial
from typing import Any

import keras
from keras import ops

from keras_moe import kernels
from keras_moe.dispatch import combine, dispatch, sort_by_expert
from keras_moe.layers.dropout import seed_of_part
from keras_moe.layers.expert import Expert
from keras_moe.layers.expert_layers import ExpertLayers
from keras_moe.routing import Assignment
from keras_moe.types import Tensor

# What the axes of a bank's weights are; None is D, or H.
BANK_AXES = {
    "up_kernel": ("expert", None, "inner"),
    "gate_kernel": ("expert", None, "inner"),
    "down_kernel": ("expert", "inner", None),
    "up_bias": ("expert", "inner"),
    "gate_bias": ("expert", "inner"),
    "down_bias": ("expert", None),
}


def mix_across(
    bank: kernels.Bank,
    rows: Tensor,
    assignment: Assignment,
    num_experts: int,
    pairs_per_token: int | None,
    most_rows: int | Tensor | None,
) -> Tensor:
    """Dispatches, computes, and combines where experts or tokens lie on
    several devices.

    Args:
        bank: of `spread_bank`.
        rows: `(U, W)`.
        assignment: of the units.
        num_experts: E.
        pairs_per_token: of the router.
        most_rows: pairs that an expert has at most, or None.

    Returns:
        `(U, W')`.
    """
    pairs = kernels.Pairs(
        assignment.token_index,
        assignment.expert_index,
        assignment.combine_weights,
        num_experts,
    )
    mix = partial(_mix_local, pairs_per_token=pairs_per_token)
    return kernels.mix_across(
        mix, bank, rows, pairs, pairs_per_token, most_rows
    )


def _mix_local(send, rows, pairs, pairs_per_token):
    """What one device does with its rows; `send` runs the experts."""
    pair_order, group_sizes = sort_by_expert(
        pairs.expert_index, pairs.num_experts
    )
    dispatched = dispatch(rows, pairs.token_index, pair_order, pairs_per_token)
    return combine(
        send(dispatched, group_sizes, pair_order),
        pairs.token_index,
        pairs.combine_weights,
        pair_order,
        ops.shape(rows)[0],
        pairs_per_token,
    )


def token_shards(experts, num_units: int | Tensor) -> int:
    """Returns in how many equal parts the U tokens of a program lie: an expert
    has its capacity in each of them."""
    bank = spread_bank(experts, num_units)
    return 1 if bank is None else kernels.num_token_shards(bank)


def rows_are_fixed(experts, expert_index: Tensor) -> bool:
    """Returns whether experts are layers of any kind, in a program in which
    each has a fixed number of rows, whatever the values are."""
    if not isinstance(experts, ExpertLayers):
        return False
    return kernels.shapes_known(expert_index) == "sizes"


def spread_bank(
    experts, num_units: int | Tensor, training=None, units=None
) -> kernels.Bank | None:
    """Returns experts as a function of their weights where a distribution
    spreads tokens or experts over devices, else None. Layers of any kind are
    never spread: they are whole on each device."""
    if not (isinstance(experts, Expert) and experts.built):
        return None
    if not kernels.is_spread(experts.shard, num_units):
        return None
    named, rebuild = _flattened(experts.ffn_weights())
    seeds: tuple = ()
    if experts.hidden_dropout(training) and experts.shard is None:
        seeds = (experts.seed_generator.next(),)

    def run(tensors, rows, group_sizes, part):
        # As calling the layer would cast them.
        tensors = [_cast_float(x, experts.compute_dtype) for x in tensors]
        rows = _cast_float(rows, experts.compute_dtype)
        seed = seed_of_part(tensors.pop(), part) if seeds else None
        outputs = experts.run(
            _biased_once(rebuild(tensors), part),
            units.for_experts(rows),
            group_sizes,
            experts.hidden_dropout(training, seed),
        )
        return units.as_rows(outputs)

    axes = [BANK_AXES.get(name, ("expert", None, None)) for name, _ in named]
    variables = [variable for _, variable in named]
    return kernels.Bank(variables, axes, run, seeds, experts.shard)


def _biased_once(weights, part):
    """Where parts of F are summed up, the last bias is in one of them."""
    if part is None or weights.down_bias is None:
        return weights
    bias = weights.down_bias * ops.cast(part.is_first, weights.down_bias.dtype)
    return weights._replace(down_bias=bias)


def _cast_float(x, dtype):
    if not keras.backend.is_float_dtype(x.dtype):
        return x
    return ops.cast(x, dtype)


def _flattened(weights: kernels.FFNWeights) -> tuple[list, Any]:
    """Returns the variables in weights, by name, and a function of as many
    tensors that puts them in their places. A quantised kernel has two, whose
    axes but the first are whole on each device."""
    named: list[tuple[str, keras.Variable]] = []
    for name, weight in weights._asdict().items():
        if isinstance(weight, kernels.QuantizedKernel):
            parts = (weight.values, weight.scale)
            named += [(f"{name}_{i}", part) for i, part in enumerate(parts)]
        elif weight is not None:
            named.append((name, weight))

    def rebuild(tensors):
        found = iter(tensors)

        def next_of(weight):
            if isinstance(weight, kernels.QuantizedKernel):
                return weight._replace(values=next(found), scale=next(found))
            return None if weight is None else next(found)

        return kernels.FFNWeights(*map(next_of, weights))

    return named, rebuild
