"""PyTorch on CPU: sums of gathered rows, in one pass over them.

P rows of width D, T = P / K sums of K rows each. See `../row_ops.py`.
Gathering, weighting and summing one after the other writes each row three
times to memory that the system has to find first: at L a tenth of a block's
forward pass. The library's bag of embeddings does it all at once; its own
gradient is for indices that come again and again, so it is written here.
`torch.compile` leaves its graph for it, as it does for the bank before: what
it makes of the parts for any number of tokens takes a quarter of S forward.
"""

import torch

from keras_moe.kernels.torch.tracing import (
    is_differentiated_again,
    is_exported,
    is_transformed,
)
from keras_moe.types import Tensor

CHUNK_BYTES = 1 << 19  # of rows that stay in cache while they are used twice
SUM = 0  # the mode of torch.embedding_bag


def gathered_sum(
    rows: Tensor,
    place: Tensor,
    order: Tensor,
    num_terms: int,
    weights: Tensor | None = None,
) -> Tensor | None:
    """None where the parts are to be seen, and on accelerators."""
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
