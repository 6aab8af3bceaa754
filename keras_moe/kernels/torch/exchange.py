"""PyTorch: rows to the processes that hold their experts, and back.

P routed pairs of this process, P' rows that it receives, D and D' widths, E
experts, N processes, L = E / N experts a process: rank r holds the experts
r * L ... r * L + L - 1.

How many rows go where is exchanged first; then each row travels once there
and once back, by `all_to_all_single` of uneven parts: nothing is padded.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from keras import ops
from torch import distributed

from keras_moe.kernels.exchange import Bank, Pairs
from keras_moe.kernels.torch.tracing import is_transformed
from keras_moe.types import Tensor


class _Route(NamedTuple):
    """Where the rows of one call go; all of it is known on the host.

    sent, received: rows for and from each process, lists of N.
    order, place: int `(P',)`, the received row at each sorted place, and the
    place of each; received rows stand by process, sorted ones by expert.
    """

    sent: list[int]
    received: list[int]
    order: Tensor
    place: Tensor
    group: object

    @property
    def num_processes(self) -> int:
        return len(self.sent)


def mix_across(
    mix: Callable,
    bank: Bank,
    rows: Tensor,
    pairs: Pairs,
    pairs_per_token: int | None,
    most_rows: int | Tensor | None = None,
) -> Tensor:
    """Dispatch here, the experts where they are, combine here; see
    `protocol.py`."""

    def send(rows, group_sizes, pair_order):
        def run(rows, local_sizes):
            weights = [ops.convert_to_tensor(v) for v in bank.variables]
            return bank.run(
                [*weights, *bank.constants], rows, local_sizes, None
            )

        return exchange_rows(run, rows, group_sizes, bank.shard.group)

    return mix(send, rows, pairs)


def exchange_rows(
    run: Callable[[Tensor, Tensor], Tensor],
    rows: Tensor,
    group_sizes: Tensor,
    group=None,
) -> Tensor:
    """Runs each row through its expert, wherever that is; collective.

    Every process of the group calls it at the same time, each with its own
    rows, also one without any.

    A row's gradient is that of its own process's loss. The gradient of a
    weight that `run` reads is that of the mean of the processes' losses, as
    data parallelism has it for replicated weights. So are gradients of
    gradients, which are collective, too.

    Args:
        run: function of `(P', D)` rows sorted by expert and of int32 `(L,)`
            rows of each expert held here; returns `(P', D')`.
        rows: float `(P, D)`, sorted by expert.
        group_sizes: int `(E,)`, rows of each expert. The sum is at most P;
            rows behind it travel nowhere and come back as zero.
        group: the process group that shares the experts; None is all
            processes. E must divide by its size.

    Returns:
        `(P, D')`, in the order of `rows`.

    Raises:
        ValueError: where E does not divide by the number of processes.
        NotImplementedError: Under `torch.func` or forward-mode
            differentiation.
    """
    count = _check_divides(group_sizes, group)
    if rows.is_meta:  # shapes alone are asked for
        return run(rows, group_sizes[: group_sizes.shape[0] // count])
    _check_followed()
    route, local_sizes = _plan(group_sizes, group)
    travel = partial(_travelled, route, rows.shape[0])
    # On the way back the gradients of all processes' losses come as a mean,
    # which is undone where they leave the experts.
    arrived = travel(rows, (_there, 1), (_back, count))
    outputs = run(arrived, local_sizes)
    return travel(outputs, (_back, 1), (_there, 1 / count))


def gather_shards(shard: Tensor, group=None) -> Tensor:
    """Returns the whole of a tensor whose first axis is shared out.

    Args:
        shard: `(L, ...)`, as large on each process.
        group: see `exchange_rows`.

    Returns:
        `(E, ...)`, on every process.
    """
    parts = [
        torch.empty_like(shard, memory_format=torch.contiguous_format)
        for _ in range(distributed.get_world_size(group))
    ]
    distributed.all_gather(parts, shard.contiguous(), group=group)
    return torch.cat(parts)


def _check_divides(group_sizes, group):
    """Returns N where E divides by it."""
    count = distributed.get_world_size(group)
    if group_sizes.shape[0] % count == 0:
        return count
    raise ValueError(
        "`group_sizes` must divide by the number of processes: each holds as "
        f"many experts. Received: {group_sizes.shape[0]} experts, {count} "
        "processes. Choose a divisor of the number of experts."
    )


def _check_followed():
    if not is_transformed():
        return
    raise NotImplementedError(
        "Experts that are spread over processes cannot be transformed by "
        "`torch.func`, nor differentiated in forward mode: PyTorch does not "
        "follow what processes exchange. Received: a transformed call. Use "
        "`torch.autograd.grad`, whose gradients have gradients here, or a "
        "model that one process holds."
    )


def _plan(group_sizes, group):
    """Exchanges the counts; returns the route and int32 `(L,)`."""
    count = distributed.get_world_size(group)
    outgoing = group_sizes.to(torch.int64).reshape(count, -1).contiguous()
    incoming = torch.empty_like(outgoing)
    distributed.all_to_all_single(incoming, outgoing, group=group)
    # One look at the device for both: the sizes of what travels.
    both = torch.stack([outgoing.sum(1), incoming.sum(1)])
    sent, received = both.tolist()
    experts = torch.arange(incoming.shape[1], device=incoming.device)
    expert = experts.repeat(count).repeat_interleave(
        incoming.reshape(-1), output_size=sum(received)
    )
    order = torch.argsort(expert, stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(order.shape[0], device=order.device)
    route = _Route(sent, received, order, place, group)
    return route, incoming.sum(0).to(torch.int32)


def _travelled(route, num_rows, rows, travel, opposite):
    return _Travel.apply(rows, route, num_rows, travel, opposite)


def _there(rows, route, num_rows):
    """`(P, D)` to `(P', D)`: to the experts, sorted by expert."""
    rows = rows[: sum(route.sent)].contiguous()
    arrived = rows.new_empty((sum(route.received), rows.shape[1]))
    distributed.all_to_all_single(
        arrived, rows, route.received, route.sent, group=route.group
    )
    return arrived.index_select(0, route.order)


def _back(outputs, route, num_rows):
    """`(P', D')` to `(P, D')`: the transpose of `_there`."""
    outputs = outputs.index_select(0, route.place)
    num_sent = sum(route.sent)
    rows = outputs.new_zeros((num_rows, outputs.shape[1]))
    distributed.all_to_all_single(
        rows[:num_sent], outputs, route.sent, route.received, group=route.group
    )
    return rows


class _Travel(torch.autograd.Function):
    """Moves rows and scales them; its gradient is another such travel, whose
    gradient is this one.

    travel, opposite: `(function, scale)`, with `_there` or `_back`.
    """

    @staticmethod
    def forward(ctx, rows, route, num_rows, travel, opposite):
        ctx.arguments = route, num_rows, opposite, travel
        move, scale = travel
        moved = move(rows, route, num_rows)
        return moved if scale == 1 else moved * scale

    @staticmethod
    def backward(ctx, gradient):
        gradient = _Travel.apply(gradient, *ctx.arguments)
        return gradient, None, None, None, None
