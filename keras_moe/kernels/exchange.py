"""Experts that lie on several devices: rows go to them and come back.

T tokens, D hidden_dim, E experts, P routed pairs.

The seam beside dispatch. `mix_across` runs the whole of dispatch, experts and
combine, with the exchange between: on JAX inside `jax.shard_map`, by the
layouts of `keras.distribution`; on PyTorch between the processes that a bank
is divided among. Routing and losses stay outside of it.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from keras_moe.types import Tensor


class Bank(NamedTuple):
    """Experts as a function of their weights.

    variables: the weights, the first of them `(E, ...)` with its `axes`.
    axes: for each variable a name an axis, `"expert"`, `"inner"` (F) or None.
    run: `run(tensors, rows, group_sizes, part)`, the tensors in the order of
        the variables and then the constants; rows `(P, ...)` sorted by expert.
    constants: tensors that every device needs whole.
    shard: which experts this process holds, an `ExpertShard`; None for all,
        or where the layout of the variables says it.
    """

    variables: Sequence[keras.Variable]
    axes: Sequence[tuple]
    run: Callable
    constants: Sequence[Tensor] = ()
    shard: Any = None


class ExpertShard(NamedTuple):
    """The part of a bank that one process holds: E / num_parts experts.

    number: of the part, 0 ... num_parts - 1.
    num_parts: how many there are.
    group: the processes that hold them, a `torch.distributed` group; None
        for all.
    """

    number: int
    num_parts: int
    group: Any = None


class Part(NamedTuple):
    """What one device computes of a bank.

    number: int32 scalar, another on each device.
    is_first: float scalar, 1 on one of the devices that sum their results
        up, 0 on the others: what is added once is multiplied by it.
    """

    number: Tensor
    is_first: Tensor


class Pairs(NamedTuple):
    """The routed pairs of an `Assignment`, each `(P,)`, and of how many
    experts they choose."""

    token_index: Tensor
    expert_index: Tensor
    combine_weights: Tensor
    num_experts: int


def rows_of_way(
    num_rows: int, num_experts: int, devices: int, most_rows: int | None
) -> int:
    """Returns M, rows from one device to another in a round of an exchange
    whose shapes are fixed: all that a capacity lets through, or a quarter
    more than an even load has, in eights.

    Args:
        num_rows: P, of the device that sends.
        num_experts: E.
        devices: N that share them.
        most_rows: C, or None.
    """
    if most_rows is not None:
        return min(num_rows, num_experts // devices * most_rows)
    even = -(-num_rows // devices)
    return min(num_rows, 8 * -(-5 * even // 32))
