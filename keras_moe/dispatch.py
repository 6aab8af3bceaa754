"""Floor 1: send tokens to their experts and back. Pure functions.

T tokens, D hidden_dim, E experts, K top_k, P routed pairs.

`dispatch` sorts the routed pairs by expert, so that each expert's rows are
contiguous. `combine` undoes the sort and sums each token's pairs by weight.
Both are gathers, and so are their gradients: a sort is a permutation, whose
transpose is its inverse. A scatter-add would be slow on every backend.
"""

from functools import partial
from typing import NamedTuple

from keras_moe.kernels import (
    gathered_sum,
    linear_map,
    sort_groups,
    take_rows,
)
from keras_moe.kernels import light_ops as ops
from keras_moe.types import Tensor


class PairOrder(NamedTuple):
    """A permutation of the routed pairs, and its inverse.

    order: int32 `(P,)`, the pair at each sorted place.
    place: int32 `(P,)`, the sorted place of each pair.
    """

    order: Tensor
    place: Tensor


def sort_by_expert(
    expert_index: Tensor, num_experts: int
) -> tuple[PairOrder, Tensor]:
    """Sort pairs by expert; pairs of one expert keep their order.

    Args:
        expert_index: int32 `(P,)`. Pairs with an index of E or above come
            last.
        num_experts: int. E.

    Returns:
        The order, and the number of pairs per expert, int32 `(E,)`.
    """
    order, place, sizes = sort_groups(expert_index, num_experts)
    return PairOrder(order, place), sizes


def split_weights(
    weights_on: str, combine_weights: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    """Return the weights for `dispatch` and for `combine`, one of them None.

    Args:
        weights_on: str. `"outputs"` or `"inputs"` of the experts.
        combine_weights: `(P,)`. The weight of each pair.
    """
    if weights_on == "inputs":
        return combine_weights, None
    return None, combine_weights


def dispatch(
    tokens: Tensor,
    token_index: Tensor,
    pair_order: PairOrder,
    pairs_per_token: int | None = None,
    combine_weights: Tensor | None = None,
) -> Tensor:
    """Copy each pair's token to the pair's sorted place.

    Args:
        tokens: `(T, D)`.
        token_index: int32 `(P,)`. The token of each pair.
        pair_order: The result of `sort_by_expert`.
        pairs_per_token: int. K, if the pairs of token t are at
            `t * K ... t * K + K-1`. `None` (the default) if a token may have
            any number of pairs.
        combine_weights: `(P,)`. The weight of each pair, by which its row is
            multiplied; then `combine` takes no weights. `None` (the default)
            copies the tokens unchanged.

    Returns:
        `(P, D)`, rows sorted by expert.
    """
    tokens = ops.convert_to_tensor(tokens)
    source = take_rows(ops.convert_to_tensor(token_index), pair_order.order)
    if pairs_per_token is None:
        rows = take_rows(tokens, source)
    else:
        gathered = partial(_gathered, num_terms=pairs_per_token)
        rows = linear_map(_spread, gathered, tokens, source, *pair_order)
    if combine_weights is None:
        return rows
    return _weighted(rows, combine_weights, pair_order)


def _weighted(
    rows: Tensor, combine_weights: Tensor, pair_order: PairOrder
) -> Tensor:
    """Return sorted rows `(P, D)` times the weights of their pairs."""
    weights = ops.cast(combine_weights, rows.dtype)
    return rows * ops.expand_dims(take_rows(weights, pair_order.order), -1)


def _spread(
    tokens: Tensor, source: Tensor, order: Tensor, place: Tensor
) -> Tensor:
    return take_rows(tokens, source)


def _gathered(
    rows: Tensor, source: Tensor, order: Tensor, place: Tensor, num_terms: int
) -> Tensor:
    """Sum each token's rows: the transpose of `_spread`."""
    return gathered_sum(rows, place, order, num_terms)


def combine(
    rows: Tensor,
    token_index: Tensor,
    combine_weights: Tensor | None,
    pair_order: PairOrder,
    num_tokens: int | Tensor,
    pairs_per_token: int | None = None,
) -> Tensor:
    """Sum the sorted rows of each token's pairs by weight.

    Args:
        rows: `(P, D)`, sorted by expert. Zero for pairs that are not computed.
        token_index: int32 `(P,)`. The token of each pair.
        combine_weights: `(P,)`. The weight of each pair. None if `dispatch` has
            multiplied the rows by the weights.
        pair_order: The result of `sort_by_expert`.
        num_tokens: int or int32 scalar. T.
        pairs_per_token: int. K, if the pairs of token t are at
            `t * K ... t * K + K-1`, so that the sum is over a fixed axis.
            `None` (the default) sums by segments.

    Returns:
        `(T, D)`, zero for a token without pairs.
    """
    rows = ops.convert_to_tensor(rows)
    order, place = pair_order
    if pairs_per_token is None:
        weighted = rows
        if combine_weights is not None:
            weighted = _weighted(rows, combine_weights, pair_order)
        token = take_rows(ops.convert_to_tensor(token_index), order)
        # One segment more: on PyTorch, 0 segments mean an unknown number.
        sums = ops.segment_sum(weighted, token, num_segments=num_tokens + 1)
        return sums[:num_tokens]
    if combine_weights is not None:
        combine_weights = ops.cast(combine_weights, rows.dtype)
    return gathered_sum(rows, place, order, pairs_per_token, combine_weights)
