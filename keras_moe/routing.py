"""Floor 1: who goes where, with what weight. Pure functions.

T tokens, E experts, K top_k, C expert_capacity, P routed pairs (T * K here).

Every routing algorithm ends in one form, an `Assignment`: a flat list of
routed pairs. A pair that must not be computed (a padding token, one over
capacity) has `expert_index == E`: it sorts behind every expert, belongs to no
group, costs nothing and contributes zero.
"""

from fractions import Fraction
from typing import NamedTuple

from keras import ops

from keras_moe.kernels import (
    group_sizes_of,
    inverse_permutation,
    top_k_index,
)
from keras_moe.types import Tensor

SCORINGS = ("softmax", "topk_softmax", "sigmoid")
PRIORITIES = ("position", "score")


class Assignment(NamedTuple):
    """The routed pairs of a batch of tokens.

    token_index: int32 `(P,)`, the token of each pair.
    expert_index: int32 `(P,)`, its expert; E where it is not computed.
    combine_weights: float32 `(P,)`, its share in the token's output.
    router_probs: float32 `(T, E)`, non-negative, each row sums to one.
    router_logits: float32 `(T, E)`, before any scoring.
    """

    token_index: Tensor
    expert_index: Tensor
    combine_weights: Tensor
    router_probs: Tensor
    router_logits: Tensor


def top_k_assignment(
    router_logits: Tensor,
    top_k: int,
    scoring: str = "softmax",
    normalize_weights: bool = True,
    token_mask: Tensor | None = None,
) -> Assignment:
    """Sends each token to its K best experts (token choice).

    `"softmax"` scores with a softmax over all experts and keeps the K largest
    (Shazeer et al. 2017 without noise; Fedus et al. 2021, eq. 1).
    `"topk_softmax"` takes the softmax over the K chosen logits alone (Jiang
    et al. 2024, "Mixtral of Experts", section 2.1). `"sigmoid"` scores each
    expert for itself (DeepSeek-V3, eq. 15, without its bias). Of equal scores
    the expert with the lower index wins, on every backend.

    Args:
        router_logits: float32 `(T, E)`.
        top_k: K, 1 to E. 1 or 2 for few experts, 8 for many small ones.
        scoring: `"softmax"`, `"topk_softmax"` or `"sigmoid"`.
        normalize_weights: whether a token's K weights are divided by their
            sum. Leave it off for `top_k=1`, where the weight would become the
            constant 1 and the router would learn from the losses alone.
        token_mask: bool `(T,)`, False for padding, which goes nowhere.

    Returns:
        An `Assignment` whose pairs of token t stand at `t * K ... t * K + K-1`
        from its best expert down.
    """
    router_logits = ops.convert_to_tensor(router_logits)
    num_experts = router_logits.shape[-1]
    scores, router_probs = _scores(router_logits, scoring)
    chosen = top_k_index(scores, top_k)
    if scoring == "topk_softmax":
        logits = ops.take_along_axis(router_logits, chosen, axis=-1)
        weights = _softmax(logits)
    else:
        weights = ops.take_along_axis(scores, chosen, axis=-1)
        if normalize_weights:
            total = ops.sum(weights, axis=-1, keepdims=True)
            weights = weights / ops.maximum(total, 1e-20)
    if token_mask is not None:
        valid = ops.expand_dims(token_mask, -1)
        chosen = ops.where(valid, chosen, num_experts)
        weights = ops.where(valid, weights, ops.zeros_like(weights))
    num_tokens = ops.shape(router_logits)[0]
    return Assignment(
        token_index=_token_index(num_tokens, top_k),
        expert_index=ops.cast(ops.reshape(chosen, (-1,)), "int32"),
        combine_weights=ops.reshape(weights, (-1,)),
        router_probs=router_probs,
        router_logits=router_logits,
    )


def expert_capacity(
    num_tokens: int | Tensor,
    num_experts: int,
    top_k: int,
    capacity_factor: float,
) -> int | Tensor:
    """Returns `C = ceil(K * T * capacity_factor / E)`, in integers.

    K is included, as V-MoE, MegaBlocks and MaxText define it: a factor of 1
    holds every pair when the load is even. The factor is read as the decimal
    that was written (1.1 is 11/10), so that no rounding adds a slot.

    Args:
        num_tokens: T, padding included: C is a matter of shapes.
        num_experts: E.
        top_k: K.
        capacity_factor: above 0. 1.25 is common in training, 2 in evaluation.
    """
    factor = Fraction(str(capacity_factor)).limit_denominator(1000)
    pairs = top_k * num_tokens * factor.numerator
    return -(-pairs // (num_experts * factor.denominator))


def apply_capacity(
    assignment: Assignment, capacity: int | Tensor, priority: str = "position"
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

    Returns:
        The same assignment; dropped pairs have `expert_index == E` and weight
        zero. The weights of a token's other pairs do not grow.
    """
    num_experts = assignment.router_probs.shape[-1]
    score = pair_scores(assignment) if priority == "score" else None
    rank = _rank_within_expert(assignment.expert_index, num_experts, score)
    kept = rank < capacity
    weights = assignment.combine_weights
    return assignment._replace(
        expert_index=ops.where(kept, assignment.expert_index, num_experts),
        combine_weights=ops.where(kept, weights, ops.zeros_like(weights)),
    )


def pair_scores(assignment: Assignment) -> Tensor:
    """Returns the router probability of each pair, float32 `(P,)`."""
    probs = ops.take(assignment.router_probs, assignment.token_index, axis=0)
    last = assignment.router_probs.shape[-1] - 1
    expert = ops.expand_dims(ops.minimum(assignment.expert_index, last), -1)
    return ops.squeeze(ops.take_along_axis(probs, expert, axis=-1), -1)


def _scores(router_logits, scoring):
    """Returns what ranks the experts, and it as probabilities."""
    if scoring == "sigmoid":
        scores = ops.sigmoid(router_logits)
        total = ops.sum(scores, axis=-1, keepdims=True)
        return scores, scores / ops.maximum(total, 1e-20)
    probs = _softmax(router_logits)
    return probs, probs


def _softmax(logits):
    """`ops.softmax`, without its warning where there is one expert."""
    return ops.exp(ops.log_softmax(logits, axis=-1))


def _token_index(num_tokens, top_k):
    pairs = ops.arange(num_tokens * top_k, dtype="int32")
    return ops.floor_divide(pairs, top_k)


def _rank_within_expert(expert_index, num_experts, score=None):
    """How many pairs of the same expert stand before each, int32 `(P,)`."""
    if score is None:
        order = ops.argsort(expert_index)
    else:
        finite = ops.where(ops.isnan(score), ops.zeros_like(score), score)
        by_score = ops.argsort(ops.negative(ops.stop_gradient(finite)))
        order = ops.argsort(ops.take(expert_index, by_score))
        order = ops.take(by_score, order)
    sizes = group_sizes_of(expert_index, num_experts)
    ends = ops.cumsum(sizes)
    starts = ops.concatenate([ops.zeros_like(ends[:1]), ends])
    place = inverse_permutation(ops.cast(order, "int32"))
    return place - ops.take(starts, expert_index)
