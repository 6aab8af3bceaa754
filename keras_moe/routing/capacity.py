"""The capacity of experts, and the pairs that it drops.

T tokens, E experts, K top_k, C expert_capacity, P routed pairs.
"""

from fractions import Fraction

from keras import ops

from keras_moe.checks import (
    INFINITY,
    check_above,
    check_assignment,
    check_choice,
    check_positive_int,
    check_size,
    routing_checks,
)
from keras_moe.kernels import (
    group_sizes_of,
    inverse_permutation,
    light_ops,
    map_entries,
    take_rows,
)
from keras_moe.routing.pair_weights import pair_scores
from keras_moe.types import Assignment, Tensor

PRIORITIES = ("position", "score")
COUNT_BITS = 24  # the bits of a number of tokens that is known at run time


def expert_capacity(
    num_tokens: int | Tensor,
    num_experts: int | Tensor,
    top_k: float,
    capacity_factor: float,
) -> int | Tensor:
    """Return `C = ceil(K * T * capacity_factor / E)`, in integers.

    K is included, as in V-MoE, MegaBlocks, and MaxText: with a factor of 1, no
    pair is dropped if the load is even. The factor is read as the decimal that
    was written (1.1 is 11/10), so that rounding errors do not change C.

    Args:
        num_tokens: int or int32 scalar. T, including padding.
        num_experts: int or int32 scalar. E. Blocks count the experts that are
            on. They count all experts if C must be an int: if tokens lie on
            several devices and, on JAX, for experts that are layers of any
            kind and for experts that choose their tokens.
        top_k: float. K, the experts per token. If their number varies, this is
            the mean, as with `ReLURouter`, or the maximum if the mean is
            unknown, as with `TopPRouter`.
        capacity_factor: float above 0. Typically 1.25 in training and 2 in
            evaluation.

    Returns:
        int, or an int32 scalar if `num_tokens` or `num_experts` is a tensor.

    Example:

    ```python
    capacity = keras_moe.routing.expert_capacity(
        num_tokens=64, num_experts=4, top_k=2, capacity_factor=1.25
    )  # 40
    ```
    """
    check_size("num_tokens", num_tokens)
    routing_checks.check_positive(
        "num_experts", check_size("num_experts", num_experts)
    )
    check_above("top_k", top_k, 0, INFINITY)
    check_above("capacity_factor", capacity_factor, 0, INFINITY)
    factor = Fraction(str(capacity_factor)) * Fraction(str(top_k))
    if isinstance(num_tokens, int):
        pairs = -(-num_tokens * factor.numerator // factor.denominator)
    else:
        pairs = _rounded_up(num_tokens, _at_least(factor))
    # Rounding up twice equals rounding up once. No negative number is divided,
    # since ONNX divides these towards zero.
    return (pairs + num_experts - 1) // num_experts


def _at_least(factor: Fraction) -> Fraction:
    """Return the smallest fraction that is not below a factor.

    Its denominator is at most `2 ** COUNT_BITS`. For every integer up to that
    number, the product, rounded up, is the same.
    """
    most = 1 << COUNT_BITS
    near = factor.limit_denominator(most)
    if near >= factor:
        return near
    # The next fraction in the Farey sequence: the numerators and denominators
    # of neighbors have the determinant 1.
    a, b = near.numerator, near.denominator
    d = most - (most + pow(a, -1, b)) % b
    return Fraction((a * d + 1) // b, d)


def _rounded_up(count: int | Tensor, factor: Fraction) -> int | Tensor:
    """Return `ceil(count * factor)` in int32 arithmetic.

    It is a long division: `count` is divided in parts of as many bits as the
    denominator leaves, or in one part if the denominator is small. So no
    product with the fraction exceeds 2**31, for a count of `COUNT_BITS` bits.
    """
    whole, numerator = divmod(factor.numerator, factor.denominator)
    if not numerator:
        return count * whole
    denominator = factor.denominator
    bits = min(COUNT_BITS, 29 - denominator.bit_length())
    unit = 1 << bits
    parts = []
    upper = count
    for _ in range(-(-COUNT_BITS // bits) - 1):
        parts.append(upper % unit)
        upper = upper // unit
    quotient, value = 0, upper * numerator
    for part in reversed(parts):
        quotient = (quotient + value // denominator) * unit
        value = value % denominator * unit + part * numerator
    quotient = quotient + (value + denominator - 1) // denominator
    return count * whole + quotient if whole else quotient


def apply_capacity(
    assignment: Assignment,
    capacity: int | Tensor,
    priority: str = "position",
    num_shards: int = 1,
) -> Assignment:
    """Drop the pairs over the capacity of their expert.

    Args:
        assignment: `Assignment` of any router.
        capacity: int or int32 scalar. C, the most pairs per expert.
        priority: str. `"position"` (the default) keeps the earlier tokens,
            whether the expert was their first choice or not, so that no token
            depends on a later one. `"score"` keeps the pairs with the highest
            router probability, and of equal ones the earlier. This is
            batch-priority routing (Riquelme et al. 2021, section 4), by pair
            instead of by token.
        num_shards: int. Number of equal parts in which the tokens lie, in
            order; the last part may be shorter. The capacity holds for each
            part. With more than 1 part, all shapes must be static, and all
            tokens must have equally many pairs. Defaults to 1.

    Returns:
        The assignment. Dropped pairs have `expert_index == E` and the weight
        zero. The weights of a token's other pairs do not change.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.top_k_assignment(logits, top_k=2)
    kept = keras_moe.routing.apply_capacity(assignment, capacity=3)
    ```
    """
    check_assignment(assignment)
    check_size("capacity", capacity)
    check_choice("priority", priority, PRIORITIES)
    num_shards = check_positive_int("num_shards", num_shards)
    num_experts = routing_checks.num_columns(assignment.router_probs)
    score = pair_scores(assignment) if priority == "score" else None
    if num_shards == 1:
        rank = _rank_within_expert(assignment.expert_index, num_experts, score)
    else:
        rank = _rank_in_shards(assignment, score, num_shards)
    null = assignment.expert_index > num_experts  # null experts have no limit
    return only_pairs(assignment, ops.logical_or(rank < capacity, null))


def only_pairs(assignment: Assignment, kept: Tensor) -> Assignment:
    """Return the assignment without the pairs for which bool `(P,)` is False.

    They have `expert_index == E` and the weight zero.
    """
    num_experts = routing_checks.num_columns(assignment.router_probs)
    weights = assignment.combine_weights
    return assignment._replace(
        expert_index=ops.where(kept, assignment.expert_index, num_experts),
        combine_weights=ops.where(kept, weights, ops.zeros_like(weights)),
    )


def only_tokens(
    assignment: Assignment, token_mask: Tensor | None
) -> Assignment:
    """Return the assignment without the pairs of some tokens.

    Args:
        assignment: `Assignment` of any router.
        token_mask: bool `(T,)`. False for the tokens that are left out, or None
            for none.
    """
    if token_mask is None:
        return assignment
    return only_pairs(assignment, take_rows(token_mask, assignment.token_index))


def _rank_in_shards(
    assignment: Assignment, score: Tensor | None, num_shards: int
) -> Tensor:
    """Return `_rank_within_expert` for each shard's pairs separately."""
    num_tokens, num_experts = assignment.router_probs.shape
    num_pairs = assignment.expert_index.shape[0]
    length = -(-num_tokens // num_shards) * (num_pairs // max(1, num_tokens))

    def shards(x: Tensor, fill: float) -> Tensor:
        missing = num_shards * length - num_pairs
        x = ops.pad(x, ((0, missing),), constant_values=fill)
        return ops.reshape(x, (num_shards, length))

    columns = [shards(assignment.expert_index, num_experts)]
    if score is not None:
        columns.append(shards(score, 0))
    ranks = map_entries(
        lambda shard: _rank_within_expert(shard[0], num_experts, *shard[1:]),
        tuple(columns),
    )
    return ops.reshape(ranks, (-1,))[:num_pairs]


def _rank_within_expert(
    expert_index: Tensor, num_experts: int, score: Tensor | None = None
) -> Tensor:
    """Count the pairs of the same expert before each pair, int32 `(P,)`.

    Pairs are ordered by position, or by score if there is one.
    """
    expert_index = ops.convert_to_tensor(expert_index)
    if score is None:
        order = light_ops.argsort(expert_index)
    else:
        finite = ops.where(ops.isnan(score), ops.zeros_like(score), score)
        by_score = light_ops.argsort(-ops.stop_gradient(finite))
        order = light_ops.argsort(take_rows(expert_index, by_score))
        order = take_rows(by_score, order)
    sizes = group_sizes_of(expert_index, num_experts)
    ends = ops.cumsum(sizes)
    starts = ops.concatenate([ops.zeros_like(ends[:1]), ends])
    place = inverse_permutation(ops.cast(order, "int32"))
    return place - take_rows(starts, ops.minimum(expert_index, num_experts))
