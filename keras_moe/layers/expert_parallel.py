"""Dispatch, experts, and combine across several devices.

T tokens, U units (tokens or examples), W their width, E experts, F
intermediate_dim, P routed pairs.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
from keras import ops

from keras_moe import kernels
from keras_moe.dispatch import (
    combine,
    dispatch,
    sort_by_expert,
    split_weights,
)
from keras_moe.layers.dropout import seed_of_part
from keras_moe.layers.expert import Expert
from keras_moe.layers.expert_layers import ExpertLayers
from keras_moe.routing import Assignment
from keras_moe.types import Tensor

# The axes of a bank's weights; None is D or H.
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
    weights_on: str = "outputs",
) -> Tensor:
    """Dispatch, compute, and combine across several devices.

    Args:
        bank: A `kernels.Bank`, from `spread_bank`.
        rows: Tensor of shape `(U, W)`.
        assignment: The `Assignment` of the units.
        num_experts: Int, E.
        pairs_per_token: Int or None, of the router.
        most_rows: Int or int32 scalar. Maximum of pairs per expert, or None.
        weights_on: Argument of `MoEBlock`.

    Returns:
        Tensor of shape `(U, W')`.
    """
    pairs = kernels.Pairs(
        assignment.token_index,
        assignment.expert_index,
        assignment.combine_weights,
        num_experts,
    )
    mix = partial(
        _mix_local, pairs_per_token=pairs_per_token, weights_on=weights_on
    )
    return kernels.mix_across(
        mix, bank, rows, pairs, pairs_per_token, most_rows
    )


def _mix_local(
    send: Callable[..., Tensor],
    rows: Tensor,
    pairs: kernels.Pairs,
    pairs_per_token: int | None,
    weights_on: str,
) -> Tensor:
    """Mix the rows of one device; `send` runs the experts."""
    of_inputs, of_outputs = split_weights(weights_on, pairs.combine_weights)
    pair_order, group_sizes = sort_by_expert(
        pairs.expert_index, pairs.num_experts
    )
    dispatched = dispatch(
        rows, pairs.token_index, pair_order, pairs_per_token, of_inputs
    )
    return combine(
        send(dispatched, group_sizes, pair_order),
        pairs.token_index,
        of_outputs,
        pair_order,
        ops.shape(rows)[0],
        pairs_per_token,
    )


def token_shards(experts: Any, num_units: int | Tensor) -> int:
    """Return the number of equal parts in which the U units are distributed.

    The capacity of an expert holds for each part.
    """
    bank = spread_bank(experts, num_units)
    return 1 if bank is None else kernels.num_token_shards(bank)


def rows_are_fixed(experts: Any, expert_index: Tensor) -> bool:
    """Return whether the number of rows of each expert is fixed.

    It is for layers of any kind in a program with static shapes.
    """
    if not isinstance(experts, ExpertLayers):
        return False
    return kernels.shapes_known(expert_index) == "sizes"


def spread_bank(
    experts: Any,
    num_units: int | Tensor,
    training: bool | None = None,
    units: Any = None,
) -> kernels.Bank | None:
    """Return the experts as a function of their weights, or None.

    None if no distribution spreads tokens or experts over devices. Layers of
    any kind are never spread: each device has all of them.

    Args:
        experts: Layer with all experts.
        num_units: Int or int32 scalar, U.
        training: Bool.
        units: The `Units` of the call. None if the bank is not run.
    """
    if not (isinstance(experts, Expert) and experts.built):
        return None
    if not kernels.is_spread(experts.shard, num_units):
        return None
    named, rebuild = _flattened(experts.ffn_weights())
    seeds: tuple[Tensor, ...] = ()
    if experts.hidden_dropout(training) and experts.shard is None:
        seeds = (experts.seed_generator.next(),)

    def run(
        given: Sequence[Tensor],
        rows: Tensor,
        group_sizes: Tensor,
        part: Any,
    ) -> Tensor:
        # Cast like a call of the layer.
        tensors = [_cast_float(x, experts.compute_dtype) for x in given]
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


def _biased_once(
    weights: kernels.FFNWeights, part: kernels.Part | None
) -> kernels.FFNWeights:
    """Keep the last bias in only one of the parts of F that are summed."""
    if part is None or weights.down_bias is None:
        return weights
    bias = weights.down_bias * ops.cast(part.is_first, weights.down_bias.dtype)
    return weights._replace(down_bias=bias)


def _cast_float(x: Tensor, dtype: str) -> Tensor:
    if not keras.backend.is_float_dtype(x.dtype):
        return x
    return ops.cast(x, dtype)


def _flattened(
    weights: kernels.FFNWeights,
) -> tuple[
    list[tuple[str, keras.Variable]],
    Callable[[list[Tensor]], kernels.FFNWeights],
]:
    """Return the named variables of weights, and the inverse function.

    The inverse function builds `FFNWeights` from as many tensors. A quantized
    kernel has two variables, of which only the first axis is distributed.
    """
    named: list[tuple[str, keras.Variable]] = []
    for name, weight in weights._asdict().items():
        if isinstance(weight, kernels.QuantizedKernel):
            parts = (weight.values, weight.scale)
            named += [(f"{name}_{i}", part) for i, part in enumerate(parts)]
        elif weight is not None:
            named.append((name, weight))

    def rebuild(tensors: list[Tensor]) -> kernels.FFNWeights:
        found = iter(tensors)

        def next_of(weight: Any) -> Any:
            if isinstance(weight, kernels.QuantizedKernel):
                return weight._replace(values=next(found), scale=next(found))
            return None if weight is None else next(found)

        return kernels.FFNWeights(*map(next_of, weights))

    return named, rebuild
