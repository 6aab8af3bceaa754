"""PyTorch: send rows to the processes that hold their experts, and back.

P routed pairs of this process, P' rows that it receives, D and D' widths, E
experts, N processes, L = E / N experts per process: rank r holds the experts
r * L ... r * L + L - 1.

The processes exchange the numbers of rows first. Then each row is sent once
and returned once, by `all_to_all_single` of uneven parts, so that nothing is
padded.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from keras import ops
from torch import distributed

from keras_moe.kernels.exchange import Bank, Mix, Pairs
from keras_moe.kernels.torch.tracing import is_transformed
from keras_moe.types import Tensor


class _Route(NamedTuple):
    """Where the rows of one call go; the numbers are known on the host.

    sent, received: the rows for and from each process, lists of N numbers.
    order, place: int `(P',)`, the received row at each sorted place, and the
        sorted place of each received row. Received rows are ordered by
        process, sorted ones by expert.
    group: the `torch.distributed` group, or None for all processes.
    """

    sent: list[int]
    received: list[int]
    order: Tensor
    place: Tensor
    group: Any


_Move: TypeAlias = tuple[Callable[[Tensor, _Route, int], Tensor], float]
"""`_there` or `_back`, and a factor of the rows."""


def mix_across(
    mix: Mix,
    bank: Bank,
    rows: Tensor,
    pairs: Pairs,
    pairs_per_token: int | None,
    most_rows: int | Tensor | None = None,
) -> Tensor:
    """Dispatch and combine here, and run the experts on their processes."""
    group = bank.shard.group if bank.shard else None

    def send(rows: Tensor, group_sizes: Tensor, pair_order: Tensor) -> Tensor:
        def run(rows: Tensor, local_sizes: Tensor) -> Tensor:
            weights = [ops.convert_to_tensor(v) for v in bank.variables]
            return bank.run(
                [*weights, *bank.constants], rows, local_sizes, None
            )

        return exchange_rows(run, rows, group_sizes, group)

    return mix(send, rows, pairs)


def exchange_rows(
    run: Callable[[Tensor, Tensor], Tensor],
    rows: Tensor,
    group_sizes: Tensor,
    group: Any = None,
) -> Tensor:
    """Run each row through its expert, wherever it is; collective.

    Every process of the group must call it at the same time with its own rows,
    of which there may be none.

    The gradient of a row is that of its own process's loss. The gradient of a
    weight that `run` reads is that of the mean of the processes' losses, as
    for replicated weights under data parallelism. The same holds for gradients
    of gradients, which are collective, too.

    Args:
        run: Function of rows `(P', D)`, sorted by expert, and the number of
            rows per local expert, int32 `(L,)`. It returns `(P', D')`.
        rows: float `(P, D)`, sorted by expert.
        group_sizes: int `(E,)`. The number of rows per expert. Their sum is at
            most P; rows behind it are not sent and become zero.
        group: `torch.distributed` group of the processes that share the
            experts. `None` (the default) for all processes. Its size must
            divide E.

    Returns:
        `(P, D')`, in the order of `rows`.

    Raises:
        ValueError: If E is not a multiple of the number of processes.
        NotImplementedError: Under `torch.func` or forward-mode
            differentiation.
    """
    count = _check_divides(group_sizes, group)
    if rows.is_meta:  # only shapes are computed
        return run(rows, group_sizes[: group_sizes.shape[0] // count])
    _check_followed()
    route, local_sizes = _plan(group_sizes, group)
    travel = partial(_travelled, route, rows.shape[0])
    # The gradients of all processes' losses reach the experts as a mean, which
    # is undone when they leave the experts.
    arrived = travel(rows, (_there, 1), (_back, count))
    outputs = run(arrived, local_sizes)
    return travel(outputs, (_back, 1), (_there, 1 / count))


def gather_shards(shard: Tensor, group: Any = None) -> Tensor:
    """Return the whole of a tensor whose first axis is split over processes.

    Args:
        shard: `(L, ...)`, of the same shape on each process.
        group: As in `exchange_rows`.

    Returns:
        `(E, ...)`, on every process.
    """
    parts = [
        torch.empty_like(shard, memory_format=torch.contiguous_format)
        for _ in range(distributed.get_world_size(group))
    ]
    distributed.all_gather(parts, shard.contiguous(), group=group)
    return torch.cat(parts)


def _check_divides(group_sizes: Tensor, group: Any) -> int:
    """Return N, or raise if it does not divide E."""
    count = distributed.get_world_size(group)
    if group_sizes.shape[0] % count == 0:
        return count
    raise ValueError(
        "The length of `group_sizes` must be a multiple of the number of "
        "processes, since each holds equally many experts. Received: "
        f"{group_sizes.shape[0]} experts, {count} processes. Choose a number "
        "of processes that divides the number of experts."
    )


def _check_followed() -> None:
    if not is_transformed():
        return
    raise NotImplementedError(
        "Experts that are spread over processes cannot be transformed by "
        "`torch.func`, nor differentiated in forward mode: PyTorch does not "
        "transform the exchange between processes. Received: a transformed "
        "call. Use `torch.autograd.grad`, whose gradients can be "
        "differentiated again, or a model that one process holds."
    )


def _plan(group_sizes: Tensor, group: Any) -> tuple[_Route, Tensor]:
    """Exchange the counts; return the route and the local sizes int32 `(L,)`.

    `group_sizes` is int `(E,)`.
    """
    count = distributed.get_world_size(group)
    outgoing = group_sizes.to(torch.int64).reshape(count, -1).contiguous()
    incoming = torch.empty_like(outgoing)
    distributed.all_to_all_single(incoming, outgoing, group=group)
    # The host waits for the device only once for both.
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


def _travelled(
    route: _Route, num_rows: int, rows: Tensor, travel: _Move, opposite: _Move
) -> Tensor:
    return _Travel.apply(rows, route, num_rows, travel, opposite)


def _there(rows: Tensor, route: _Route, num_rows: int) -> Tensor:
    """Send rows `(P, D)` to their experts: `(P', D)`, sorted by expert."""
    rows = rows[: sum(route.sent)].contiguous()
    arrived = rows.new_empty((sum(route.received), rows.shape[1]))
    distributed.all_to_all_single(
        arrived, rows, route.received, route.sent, group=route.group
    )
    return arrived.index_select(0, route.order)


def _back(outputs: Tensor, route: _Route, num_rows: int) -> Tensor:
    """Return outputs `(P', D')` as `(P, D')`: the transpose of `_there`."""
    outputs = outputs.index_select(0, route.place)
    num_sent = sum(route.sent)
    rows = outputs.new_zeros((num_rows, outputs.shape[1]))
    distributed.all_to_all_single(
        rows[:num_sent], outputs, route.sent, route.received, group=route.group
    )
    return rows


class _Travel(torch.autograd.Function):
    """Move rows and scale them by `travel`; the gradient uses `opposite`."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        route: _Route,
        num_rows: int,
        travel: _Move,
        opposite: _Move,
    ) -> Tensor:
        ctx.arguments = route, num_rows, opposite, travel
        move, scale = travel
        moved = move(rows, route, num_rows)
        return moved if scale == 1 else moved * scale

    @staticmethod
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        gradient = _Travel.apply(gradient, *ctx.arguments)
        return gradient, None, None, None, None
