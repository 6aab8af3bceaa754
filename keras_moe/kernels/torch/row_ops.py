"""PyTorch: row operations that `keras.ops` lacks, or that are slow there.

T tokens, E experts, K top_k, P routed pairs. `protocol/` describes what each
function does.
"""

from collections.abc import Callable
from typing import Any

import torch

from keras_moe.kernels.torch.tracing import (
    eager_on_cpu,
    is_differentiated_again,
    is_exported,
    is_transformed,
    known_sizes,
)
from keras_moe.types import Tensor

CHUNK_BYTES = 1 << 19  # of rows, which stay in cache while they are used twice
SUM = 0  # the mode of torch.embedding_bag
FEW_SCORES = 4096
FEW_ELEMENTS = 64


def top_k_index(scores: Tensor, top_k: int) -> Tensor:
    """Find the largest of integers that hold a score and a column.

    `torch.topk` leaves the order of equal scores open. The bits of a float32
    rise with its value (those of a negative one fall), so that score and
    column form an integer that equals no other. Finding the largest integers
    is faster than a stable sort of each row. Few scores are sorted, in one
    call instead of nine, and so are scores in a compiled program, whose
    choice must not depend on their number.
    """
    num_columns = scores.shape[-1]
    infinity = float("inf")
    scores = scores.float().nan_to_num(0.0, infinity, -infinity)
    if torch.onnx.is_in_onnx_export():  # see `light_ops.argsort`
        return torch.topk(scores, top_k, dim=-1).indices.to(torch.int32)
    if torch.compiler.is_compiling() or scores.numel() <= FEW_SCORES:
        order = torch.sort(scores, dim=-1, descending=True, stable=True)
        return order.indices[:, :top_k].to(torch.int32)
    bits = (scores + 0.0).view(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    columns = torch.arange(num_columns, device=scores.device)
    keys = bits * num_columns + (num_columns - 1 - columns)
    best = torch.topk(keys, top_k, dim=-1).values
    return (num_columns - 1 - best % num_columns).to(torch.int32)


def take_columns(table: Tensor, columns: Tensor) -> Tensor:
    """Use `torch.gather`.

    `torch.take_along_dim`, which Keras calls, fixes T in an export.
    """
    return torch.gather(table, -1, columns.long())


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Use `torch.index_select`.

    `ops.take` checks for negative indices first, in three more calls.
    """
    return torch.index_select(table, 0, rows)


def row_of_each(table: Tensor) -> Tensor:
    """Divide the entries' numbers, on the device of the table."""
    num_rows, num_columns = table.shape
    entries = torch.arange(
        num_rows * num_columns, dtype=torch.int32, device=table.device
    )
    return entries // num_columns


class _LinearMap(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        forward: Callable[..., Tensor],
        transpose: Callable[..., Tensor],
        x: Tensor,
        *index: Tensor,
    ) -> Tensor:
        ctx.maps = forward, transpose
        ctx.save_for_backward(*index)
        return forward(x, *index)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        forward, transpose = ctx.maps
        index = ctx.saved_tensors
        dx = linear_map(transpose, forward, dy, *index)
        return None, None, dx, *(None for _ in index)


def linear_map(
    forward: Callable[..., Tensor],
    transpose: Callable[..., Tensor],
    x: Tensor,
    *index: Tensor,
) -> Tensor:
    """Use an autograd function, which keeps nothing of `x`.

    Only `forward` runs if `x` needs no gradient, under `torch.func`, and in an
    export, since ONNX has no autograd functions.
    """
    learns = torch.is_grad_enabled() and x.requires_grad
    if learns and not is_exported() and not is_transformed():
        return _LinearMap.apply(forward, transpose, x, *index)
    return forward(x, *index)


def gathered_sum(
    rows: Tensor,
    place: Tensor,
    order: Tensor,
    num_terms: int,
    weights: Tensor | None = None,
) -> Tensor | None:
    """Sum in one pass over the rows on CPU, by `torch.embedding_bag`.

    Gathering, weighting, and summing separately would write each row three
    times to newly allocated memory. The gradient is written here, since that
    of `torch.embedding_bag` is for indices that occur many times.
    `torch.compile` leaves its graph, as it does for the bank of experts
    before: compiled for any number of tokens, the separate operations are
    slow. The result is None on other devices, in an export, and under
    `torch.func`.
    """
    if rows.device.type != "cpu" or is_exported() or is_transformed():
        return None
    return _on_cpu(rows, place, order, num_terms, weights)


@torch.compiler.disable
def _on_cpu(
    rows: Tensor,
    place: Tensor,
    order: Tensor,
    num_terms: int,
    weights: Tensor | None,
) -> Tensor:
    if not rows.numel():
        return None
    learns = rows.requires_grad or (
        weights is not None and weights.requires_grad
    )
    if learns and torch.is_grad_enabled():
        return _GatheredSum.apply(rows, weights, place, order, num_terms)
    return _sum(rows, weights, place, num_terms)


def _sum(
    rows: Tensor, weights: Tensor | None, place: Tensor, num_terms: int
) -> Tensor:
    starts = torch.arange(0, len(place), num_terms, dtype=place.dtype)
    bags = torch.embedding_bag(rows, place, starts, False, SUM, False, weights)
    return bags[0]


class _GatheredSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        weights: Tensor | None,
        place: Tensor,
        order: Tensor,
        num_terms: int,
    ) -> Tensor:
        needed = None if weights is None else rows
        ctx.save_for_backward(needed, weights, place, order)
        ctx.num_terms = num_terms
        return _sum(rows, weights, place, num_terms)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, place, order = ctx.saved_tensors
        source = order // ctx.num_terms
        if weights is None:
            return dy.index_select(0, source), None, None, None, None
        if is_differentiated_again(dy):
            found = dy.index_select(0, source)
            d_rows = found * weights.index_select(0, order)[:, None]
            d_weights = (rows * found).sum(1).index_select(0, place)
            return d_rows, d_weights, None, None, None
        own_weights = weights.index_select(0, order)
        d_rows = torch.empty_like(rows)
        d_weights = torch.empty_like(own_weights)
        length = max(1, CHUNK_BYTES // (rows.shape[1] * rows.element_size()))
        for row, d_row, index, weight, d_weight in zip(
            *(
                t.split(length)
                for t in (rows, d_rows, source, own_weights, d_weights)
            ),
            strict=True,
        ):
            torch.index_select(dy, 0, index, out=d_row)
            torch.sum(row * d_row, dim=1, out=d_weight)
            d_row.mul_(weight[:, None])
        return d_rows, d_weights.index_select(0, place), None, None, None


def inverse_permutation(order: Tensor) -> Tensor:
    """Use a scatter; the result has the dtype of `order`."""
    if is_transformed():  # PyTorch has no rule for a batch of scatters
        return torch.argsort(order).to(order.dtype)
    places = torch.arange(
        order.shape[0], dtype=order.dtype, device=order.device
    )
    return torch.empty_like(order).scatter_(0, order.long(), places)


def group_sizes_of(expert_index: Tensor, num_experts: int) -> Tensor:
    """Count on the device; the host reads no values, except on CPU."""
    if eager_on_cpu(expert_index):
        sizes = torch.bincount(expert_index, minlength=num_experts)
        return sizes[:num_experts].to(torch.int32)
    sizes = expert_index.new_zeros(num_experts + 1, dtype=torch.int32)
    ones = torch.ones_like(expert_index, dtype=torch.int32)
    slots = expert_index.long().clamp(max=num_experts)
    return sizes.scatter_add_(0, slots, ones)[:num_experts]


def shape_of_count(count: Tensor, otherwise: int) -> int:
    """Return the value of the count, if the host may read it."""
    return int(count) if eager_on_cpu(count) else otherwise


def map_entries(
    function: Callable[[tuple[Tensor, ...]], Tensor],
    tensors: tuple[Tensor, ...],
) -> Tensor:
    """Loop over the entries: `torch.vmap` has no rule for counting groups."""
    return torch.stack(
        [function(entry) for entry in zip(*tensors, strict=True)]
    )


def sort_few_groups(
    group_index: Tensor, num_groups: int
) -> tuple[Tensor, ...] | None:
    """Sort a few elements on the host, in two operations instead of nine.

    The result is None for more elements, and if the host should not read
    values.
    """
    if not eager_on_cpu(group_index):
        return None
    count = len(group_index)
    if count > FEW_ELEMENTS:
        return None
    groups = group_index.tolist()
    order = sorted(range(count), key=groups.__getitem__)
    place, sizes = [0] * count, [0] * num_groups
    for i, element in enumerate(order):
        place[element] = i
        if groups[element] < num_groups:
            sizes[groups[element]] += 1
    found = torch.tensor(order + place + sizes, dtype=torch.int32)
    return tuple(found.split((count, count, num_groups)))


def known_int(value: Tensor) -> int | None:
    """Read the value, except in torch.compile, torch.export, and on CUDA."""
    return int(value) if eager_on_cpu(value) else None


def require(valid: Tensor, message: str) -> Tensor:
    """Check the values, except in torch.compile, torch.export, and on CUDA."""
    if eager_on_cpu(valid) and not bool(valid.all()):
        raise ValueError(message)
    return valid


def shapes_known(x: Tensor) -> str:
    """Return `"at run time"`, except in TorchScript and under `vmap`.

    TorchScript, from which Keras makes ONNX, keeps only one branch. Under
    `vmap` every slice has another length.
    """
    batched = is_transformed() and known_sizes(x) is None
    return "whole" if batched or torch.jit.is_tracing() else "at run time"
