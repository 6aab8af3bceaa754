"""Tokens choose their K best experts; the bias that keeps them balanced.

T tokens, E experts, N null experts, K top_k.
"""

from keras_moe.checks import check_choice, check_positive_int, routing_checks
from keras_moe.kernels import (
    group_sizes_of,
    sum_over_replicas,
    take_columns,
    top_k_index,
)
from keras_moe.kernels import light_ops as ops
from keras_moe.routing.assignment import (
    UNCONDITIONAL,
    Conditions,
    as_probabilities,
    available_logits,
    choose,
    normalized,
    softmax,
    token_choice,
    unavailable,
)
from keras_moe.types import UNAVAILABLE, Assignment, Tensor

SCORINGS = ("softmax", "topk_softmax", "sigmoid")


def top_k_assignment(
    router_logits: Tensor,
    top_k: int,
    scoring: str = "softmax",
    normalize_weights: bool = True,
    conditions: Conditions = UNCONDITIONAL,
    expert_bias: Tensor | None = None,
    num_groups: int = 1,
    top_k_groups: int = 1,
    routed_scaling_factor: float = 1.0,
    num_null_experts: int = 0,
) -> Assignment:
    """Sends each token to its K best experts (token choice).

    `"softmax"` scores with a softmax over all experts and keeps the K largest
    (Shazeer et al. 2017 without noise; Fedus et al. 2021, eq. 1).
    `"topk_softmax"` takes the softmax over the K chosen logits alone (Jiang
    et al. 2024, "Mixtral of Experts", section 2.1). `"sigmoid"` scores each
    expert for itself (DeepSeek-V3, eq. 15). Of equal scores the expert with
    the lower index wins, on every backend.

    Args:
        router_logits: float32 `(T, E + N)`, null experts last.
        top_k: K, 1 to E. 1 or 2 for few experts, 8 for many small ones.
        scoring: `"softmax"`, `"topk_softmax"` or `"sigmoid"`.
        normalize_weights: whether a token's K weights are divided by their
            sum. Leave it off for `top_k=1`, where the weight would become the
            constant 1 and the router would learn from the losses alone.
        conditions: of the batch: padding, experts that are off, a replay.
        expert_bias: float32 `(E + N,)` added to the scores for the choice
            and not for the weight (DeepSeek-V3, eq. 16), or None.
        num_groups: groups of consecutive experts, a divisor of E; 1 for none.
        top_k_groups: from how many of its best groups a token chooses. A
            group is as good as its best expert (DeepSeek-V2, section 2.1.2),
            under `"sigmoid"` as its two best (DeepSeek-V3, section 2.1.2).
            A token whose groups have fewer than K experts that are on has
            fewer experts.
        routed_scaling_factor: the weights are multiplied by it at the end.
        num_null_experts: N.

    Returns:
        An `Assignment` whose pairs of token t stand at `t * K ... t * K + K-1`
        from its best expert down.
    """
    router_logits = ops.convert_to_tensor(router_logits)
    num_experts = routing_checks.real_experts(
        routing_checks.num_columns(router_logits), num_null_experts
    )
    check_choice("scoring", scoring, SCORINGS)
    routing_checks.check_token_choice(
        top_k, num_experts, normalize_weights, conditions
    )
    routing_checks.check_groups(num_experts, top_k, num_groups, top_k_groups)
    routing_checks.check_null_experts(num_null_experts, num_groups)
    routing_checks.check_positive(
        "routed_scaling_factor", routed_scaling_factor
    )
    masked = available_logits(router_logits, conditions)
    if scoring == "sigmoid":
        scores = ops.sigmoid(masked)
        router_probs = as_probabilities(scores, conditions)
    else:
        scores = router_probs = softmax(masked)
    ranked = masked  # in the order of the scores, and not yet rounded
    if expert_bias is not None or num_groups > 1:
        biased = scores if expert_bias is None else scores + expert_bias
        ranked = available_logits(biased, conditions)
    if num_groups > 1:
        best = 2 if scoring == "sigmoid" else 1
        ranked = keep_best_groups(ranked, num_groups, top_k_groups, best)
    choice = choose(ranked, top_k, conditions)
    if num_groups > 1 and conditions.replay is None:
        # The groups of a token may have fewer than K experts that are on.
        outside = unavailable(choice.values(ranked))
        choice = choice.only(ops.logical_not(outside))
    if scoring == "topk_softmax":
        weights = softmax(choice.values(masked, UNAVAILABLE))
    else:
        weights = choice.values(scores)
        weights = normalized(weights) if normalize_weights else weights
    if routed_scaling_factor != 1:
        weights = weights * routed_scaling_factor
    return token_choice(
        masked,
        router_probs,
        choice,
        weights,
        conditions,
        num_null_experts,
    )


def keep_best_groups(
    scores: Tensor, num_groups: int, top_k_groups: int, best: int
) -> Tensor:
    """Puts the scores outside a token's best groups below all others.

    Args:
        scores: float32 `(T, E)`, `UNAVAILABLE` for experts that are off: they
            have no part in the score of their group.
        num_groups: a divisor of E.
        top_k_groups: groups kept.
        best: how many of its experts' scores make a group's.

    Returns:
        `(T, E)`.
    """
    num_experts = routing_checks.num_columns(scores)
    routing_checks.check_groups(num_experts, 1, num_groups, top_k_groups)
    best = check_positive_int("best", best)
    size = num_experts // num_groups
    grouped = ops.reshape(scores, (-1, size))  # a row for each group
    first = top_k_index(grouped, min(best, size))
    strongest = take_columns(grouped, first)
    group_scores = strongest[:, 0]
    if min(best, size) > 1:
        others = strongest[:, 1:]
        others = ops.where(unavailable(others), ops.zeros_like(others), others)
        group_scores = group_scores + ops.sum(others, axis=-1)
    group_scores = ops.reshape(group_scores, (-1, num_groups))
    kept = top_k_index(group_scores, top_k_groups)
    groups = ops.arange(num_groups, dtype="int32")
    is_kept = ops.any(ops.equal(ops.expand_dims(kept, -1), groups), axis=1)
    is_kept = ops.repeat(is_kept, size, axis=-1)
    return ops.where(is_kept, scores, UNAVAILABLE)


def balanced_bias(
    expert_bias: Tensor,
    expert_index: Tensor,
    num_experts: int,
    step_size: float,
    available: Tensor | None = None,
) -> Tensor:
    """Moves each expert's bias against its load (Wang et al. 2024,
    "Auxiliary-Loss-Free Load Balancing Strategy", algorithm 1).

    `b_e + step_size * sign(mean load - load_e)`, with the load of all
    replicas of a step taken together. An even load moves nothing: integers
    are compared.

    Args:
        expert_bias: float32 `(E,)`.
        expert_index: int32 `(P,)`, the chosen experts; E and more are not
            counted.
        num_experts: E.
        step_size: above 0; 0.001 in the paper.
        available: bool `(E,)`, False for experts that are off, which keep
            their bias and have no part in the mean. `None` if all are on.
    """
    routing_checks.check_num_experts(num_experts, expert_bias.shape[0])
    routing_checks.check_positive("step_size", step_size)
    expert_bias = ops.convert_to_tensor(expert_bias)
    counts = ops.cast(group_sizes_of(expert_index, num_experts), "float32")
    counts = ops.cast(sum_over_replicas(counts), "int32")
    num_on = num_experts
    if available is not None:
        num_on = ops.sum(ops.cast(available, "int32"))
    total = ops.sum(counts)
    mean = total // num_on
    # A mean that is no integer is above its integer part, and below the next.
    above = ops.cast(total > mean * num_on, "int32")
    direction = ops.sign(2 * (mean - counts) + above)
    moved = expert_bias + step_size * ops.cast(direction, "float32")
    if available is None:
        return moved
    return ops.where(available, moved, expert_bias)
