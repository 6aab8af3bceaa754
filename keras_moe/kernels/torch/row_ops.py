"""PyTorch: what `keras.ops` cannot do with rows, or does slowly.

T tokens, E experts, K top_k, P routed pairs. `protocol.py` says what each
function does.
"""

from collections.abc import Callable

import torch

from keras_moe.kernels.torch.tracing import (
    eager_on_cpu,
    is_differentiated_again,
    is_exported,
    is_transformed,
    known_sizes,
)
from keras_moe.types import Tensor

CHUNK_BYTES = 1 << 19  # of rows that stay in cache while they are used twice
SUM = 0  # the mode of torch.embedding_bag
FEW_SCORES = 4096
FEW_ELEMENTS = 64


def top_k_index(scores: Tensor, top_k: int) -> Tensor:
    """The columns of each row's K largest.

    `torch.topk` leaves open which of two equal scores comes first. The bits
    of a float32 rise with its value (those of a negative one fall), so score
    and column make one integer that is never equal to another. With it a
    routing decision of 64 or 128 experts takes half of what a stable sort of
    each row takes; for a few tokens the sort is one call in place of nine,
    and in a program that is exported nothing depends on how many there are.
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
    """`torch.take_along_dim`, which Keras calls, fixes T in an export."""
    return torch.gather(table, -1, columns.long())


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Keras's looks for negative indices first: four calls in place of one."""
    return torch.index_select(table, 0, rows)


def row_of_each(table: Tensor) -> Tensor:
    """On the table's device."""
    num_rows, num_columns = table.shape
    entries = torch.arange(
        num_rows * num_columns, dtype=torch.int32, device=table.device
    )
    return entries // num_columns


class _LinearMap(torch.autograd.Function):
    @staticmethod
    def forward(ctx, forward, transpose, x, *index):
        ctx.maps = forward, transpose
        ctx.save_for_backward(*index)
        return forward(x, *index)

    @staticmethod
    def backward(ctx, dy):
        forward, transpose = ctx.maps
        index = ctx.saved_tensors
        dx = linear_map(transpose, forward, dy, *index)
        return None, None, dx, *(None for _ in index)


def linear_map(
    forward: Callable, transpose: Callable, x: Tensor, *index: Tensor
) -> Tensor:
    """Keeps nothing of `x`. It is `forward` alone if nothing learns, under
    `torch.func`, and in an export, since ONNX has no such functions."""
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
    """In one pass over the rows, on CPU; None where the parts are to be seen.

    Gathering, weighting and summing one after the other writes each row three
    times to memory that the system has to find first: at L a tenth of a
    block's forward pass. The library's bag of embeddings does it all at once;
    its own gradient is for indices that come again and again, so it is written
    here. `torch.compile` leaves its graph for it, as it does for the bank
    before: what it makes of the parts for any number of tokens takes a quarter
    of S forward.
    """
    if rows.device.type != "cpu" or is_exported() or is_transformed():
        return None
    return _on_cpu(rows, place, order, num_terms, weights)


@torch.compiler.disable
def _on_cpu(rows, place, order, num_terms, weights):
    if not rows.numel():
        return None
    learns = rows.requires_grad or (
        weights is not None and weights.requires_grad
    )
    if learns and torch.is_grad_enabled():
        return _GatheredSum.apply(rows, weights, place, order, num_terms)
    return _sum(rows, weights, place, num_terms)


def _sum(rows, weights, place, num_terms):
    starts = torch.arange(0, len(place), num_terms, dtype=place.dtype)
    bags = torch.embedding_bag(rows, place, starts, False, SUM, False, weights)
    return bags[0]


class _GatheredSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows, weights, place, order, num_terms):
        needed = None if weights is None else rows
        ctx.save_for_backward(needed, weights, place, order)
        ctx.num_terms = num_terms
        return _sum(rows, weights, place, num_terms)

    @staticmethod
    def backward(ctx, dy):
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
    """The place of each element, of the dtype of `order`, `(P,)`."""
    if is_transformed():  # PyTorch has no rule for a batch of scatters
        return torch.argsort(order).to(order.dtype)
    places = torch.arange(
        order.shape[0], dtype=order.dtype, device=order.device
    )
    return torch.empty_like(order).scatter_(0, order.long(), places)


def group_sizes_of(expert_index: Tensor, num_experts: int) -> Tensor:
    """How many pairs each expert has, int32 `(E,)`; no count on the host."""
    if eager_on_cpu(expert_index):
        sizes = torch.bincount(expert_index, minlength=num_experts)
        return sizes[:num_experts].to(torch.int32)
    sizes = expert_index.new_zeros(num_experts + 1, dtype=torch.int32)
    ones = torch.ones_like(expert_index, dtype=torch.int32)
    slots = expert_index.long().clamp(max=num_experts)
    return sizes.scatter_add_(0, slots, ones)[:num_experts]


def shape_of_count(count: Tensor, otherwise: int) -> int:
    """Its value, if the host may look at it."""
    return int(count) if eager_on_cpu(count) else otherwise


def map_entries(
    function: Callable[[tuple[Tensor, ...]], Tensor], tensors: tuple
) -> Tensor:
    """One after the other: `torch.vmap` has no rule for a count of groups."""
    return torch.stack(
        [function(entry) for entry in zip(*tensors, strict=True)]
    )


def sort_few_groups(
    group_index: Tensor, num_groups: int
) -> tuple[Tensor, ...] | None:
    """A few elements on the host, in two operations in place of nine; None
    for more of them, and where the host should not look."""
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
    return found.split((count, count, num_groups))


def known_int(value: Tensor) -> int | None:
    """Not in torch.compile and torch.export, nor on CUDA."""
    return int(value) if eager_on_cpu(value) else None


def require(valid: Tensor, message: str) -> Tensor:
    """Not for shapes only, in torch.compile and torch.export, nor on CUDA."""
    if eager_on_cpu(valid) and not bool(valid.all()):
        raise ValueError(message)
    return valid


def shapes_known(x: Tensor) -> str:
    """None, but in TorchScript, from which Keras makes ONNX and which keeps
    one branch, and under `vmap`, where each slice has another length."""
    batched = is_transformed() and known_sizes(x) is None
    return "whole" if batched or torch.jit.is_tracing() else "at run time"
