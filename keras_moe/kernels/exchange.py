"""Experts that lie on several devices: rows are sent to them and back.

T tokens, D hidden_dim, E experts, P routed pairs.

A backend's `mix_across` runs dispatch, experts, and combine with the exchange
of rows between them: on JAX inside `jax.shard_map`, by the layouts of
`keras.distribution`; on PyTorch between the processes that share a bank of
experts. Routing and losses are computed outside of it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras

from keras_moe.types import Tensor


class ExpertShard(NamedTuple):
    """The part of a bank that one process holds: E / num_parts experts.

    number: int in 0 ... num_parts - 1, the number of the part.
    num_parts: int, the number of parts.
    group: the `torch.distributed` group of the processes that hold the parts;
        None if all processes do.
    """

    number: int
    num_parts: int
    group: Any = None


class Part(NamedTuple):
    """The part of a bank that one device computes.

    number: int32 scalar that differs between devices.
    is_first: float scalar, 1 on one of the devices that sum up their results
        and 0 on the others. A bias, which must be added once, is multiplied
        by it.
    """

    number: Tensor
    is_first: Tensor


class Pairs(NamedTuple):
    """The routed pairs of an `Assignment`, and the number of experts.

    token_index, expert_index, combine_weights: `(P,)`, as in an `Assignment`.
    num_experts: int, E.
    """

    token_index: Tensor
    expert_index: Tensor
    combine_weights: Tensor
    num_experts: int


RunBank: TypeAlias = Callable[
    [Sequence[Tensor], Tensor, Tensor, Part | None], Tensor
]
"""`run(tensors, rows, group_sizes, part)`: the outputs of a bank's experts."""

Send: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""`send(rows, group_sizes, pair_order)`: the outputs of sorted rows."""

Mix: TypeAlias = Callable[[Send, Tensor, Pairs], Tensor]
"""`mix(send, rows, pairs)`: dispatch, experts by `send`, and combine."""


class Bank(NamedTuple):
    """Experts as a function of their weights.

    variables: the weights. The first one is `(E, ...)`, and its `axes` decide
        how the bank is divided.
    axes: for each variable the names of its axes: `"expert"`, `"inner"` (F),
        or None.
    run: `run(tensors, rows, group_sizes, part)`. The tensors are in the order
        of the variables, followed by the constants; rows `(P, ...)` are sorted
        by expert.
    constants: tensors that every device needs whole.
    shard: the experts that this process holds, an `ExpertShard`. None if the
        process holds all, or if the layout of the variables divides them.
    """

    variables: Sequence[keras.Variable]
    axes: Sequence[tuple[str | None, ...]]
    run: RunBank
    constants: Sequence[Tensor] = ()
    shard: ExpertShard | None = None


def rows_of_way(
    num_rows: int, num_experts: int, devices: int, most_rows: int | None
) -> int:
    """Return M, the rows from one device to another in a round of an exchange.

    Shapes are fixed. With a capacity, M is the most rows that it lets through,
    so that one round is enough. Otherwise M is an even share plus a quarter,
    rounded up to a multiple of 8.

    Args:
        num_rows: int. P, the rows of the device that sends.
        num_experts: int. E.
        devices: int. N, the devices that share the experts.
        most_rows: int. C, or None if there is no capacity.
    """
    if most_rows is not None:
        return min(num_rows, num_experts // devices * most_rows)
    even = -(-num_rows // devices)
    return min(num_rows, 8 * -(-5 * even // 32))
