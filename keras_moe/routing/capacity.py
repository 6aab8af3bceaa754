"""How many pairs an expert takes, and which ones.

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
from keras_moe.routing.assignment import (
    pair_scores,
)
from keras_moe.types import Assignment, Tensor

PRIORITIES = ("position", "score")
COUNT_BITS = 24  # of a number of tokens that is known only at run time


def expert_capacity(
    num_tokens: int | Tensor,
    num_experts: int | Tensor,
    top_k: float,
    capacity_factor: float,
) -> int | Tensor:
    """Returns `C = ceil(K * T * capacity_factor / E)`, in integers.

    K is included, as V-MoE, MegaBlocks and MaxText define it: a factor of 1
    holds every pair when the load is even. The factor is read as the decimal
    that was written (1.1 is 11/10), so that no rounding adds a slot.

    Args:
        num_tokens: T, padding included: C is a matter of shapes.
        num_experts: E. Blocks count the experts that are on, an int32 scalar.
            They count all of them if C must be a number: if tokens lie on
            several devices and, on JAX, for experts that are layers of any
            kind and for experts that choose their tokens.
        top_k: K, experts of a token; the mean if that varies and is known, as
            with `ReLURouter`; the most with `TopPRouter`, whose mean is not
            known beforehand.
        capacity_factor: above 0. 1.25 is common in training, 2 in evaluation.
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
    # Rounding up twice is rounding up once. No negative number is divided:
    # ONNX divides those towards zero.
    return (pairs + num_experts - 1) // num_experts


def _at_least(factor: Fraction) -> Fraction:
    """Returns the least fraction that is not below a factor, of those whose
    denominator has `COUNT_BITS` bits at most: it gives the same product,
    rounded up, for every integer up to that denominator."""
    most = 1 << COUNT_BITS
    near = factor.limit_denominator(most)
    if near >= factor:
        return near
    # The next one in the Farey sequence: numerators and denominators of
    # neighbors have the determinant 1.
    a, b = near.numerator, near.denominator
    d = most - (most + pow(a, -1, b)) % b
    return Fraction((a * d + 1) // b, d)


def _rounded_up(count: int | Tensor, factor: Fraction) -> int | Tensor:
    """Returns `ceil(count * factor)`; no product of a fraction is above
    2**31 for a count of `COUNT_BITS` bits.

    It is a division by hand: `count` is taken in parts of as many bits as the
    denominator leaves, one part if the denominator is small.
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
    """Drops the pairs that find their expert full.

    Args:
        assignment: from any router.
        capacity: C, pairs an expert takes.
        priority: `"position"` keeps the earlier tokens, whichever choice the
            expert was of theirs, so that no token depends on a later one.
            `"score"` keeps the pairs with the highest router probability
            (batch-priority routing, Riquelme et al. 2021, section 4; by pair,
            where the paper ranks whole tokens), equal ones by position.
        num_shards: equal parts that the tokens lie in, in order, the last
            one perhaps shorter; an expert takes C pairs of each. Above 1 all
            shapes are known, and tokens have as many pairs each.

    Returns:
        The same assignment; dropped pairs have `expert_index == E` and weight
        zero. The weights of a token's other pairs do not grow.
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
    null = assignment.expert_index > num_experts  # these have no limit
    kept = ops.logical_or(rank < capacity, null)
    weights = assignment.combine_weights
    return assignment._replace(
        expert_index=ops.where(kept, assignment.expert_index, num_experts),
        combine_weights=ops.where(kept, weights, ops.zeros_like(weights)),
    )


def _rank_in_shards(
    assignment: Assignment, score: Tensor | None, num_shards: int
) -> Tensor:
    """`_rank_within_expert` of each shard's pairs by themselves."""
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
    """How many pairs of the same expert stand before each, int32 `(P,)`."""
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
