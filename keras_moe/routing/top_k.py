"""Token choice of the K best experts, and the bias that balances experts.

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

SCORINGS = ("softmax", "topk_softmax", "sigmoid", "sqrt_softplus")
LEAST_LOGIT = -80.0  # of a square root of softplus that is not 0
OF_EACH_EXPERT = ("sigmoid", "sqrt_softplus")  # scores without a softmax
GROUP_SCORES = ("auto", "best", "two_best")


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
    group_score: str = "auto",
) -> Assignment:
    """Send each token to its K best experts (token choice).

    `"softmax"` computes a softmax over all experts and keeps the K largest.
    `"topk_softmax"` computes the softmax over the K chosen logits alone.
    `"sigmoid"` and `"sqrt_softplus"`, the square root of `log(1 + exp(logit))`,
    score each expert independently. Of equal scores the expert with the lower
    index is chosen, on every backend.

    Reference: Shazeer et al. 2017 without noise, and Fedus et al. 2021, eq. 1
    (`"softmax"`); Jiang et al. 2024, "Mixtral of Experts", section 2.1
    (`"topk_softmax"`); DeepSeek-AI 2024, "DeepSeek-V3 Technical Report",
    eq. 15-16 (`"sigmoid"`, `expert_bias`); DeepSeek-V4 (`"sqrt_softplus"`).

    Args:
        router_logits: float32 `(T, E + N)`. The null experts come last.
        top_k: int. K, 1 to E. Typically 1 or 2 for few experts, 8 for many
            small ones.
        scoring: str. `"softmax"` (the default), `"topk_softmax"`,
            `"sigmoid"`, or `"sqrt_softplus"`.
        normalize_weights: bool. Whether a token's K weights are divided by
            their sum. Defaults to `True`. Pass `False` with `top_k=1`:
            otherwise the weight would be the constant 1, and only the losses
            would train the router.
        conditions: `Conditions` of the batch: padding, experts that are off,
            a replay.
        expert_bias: float32 `(E + N,)`. Added to the scores for the choice,
            but not to the weights. `None` (the default) for no bias.
        num_groups: int. Number of groups of consecutive experts, a divisor of
            E. Defaults to 1.
        top_k_groups: int. Number of its best groups from which a token
            chooses. Defaults to 1. If fewer than K experts in these groups are
            on, the token has fewer experts.
        routed_scaling_factor: float. Factor of the final weights. Defaults to
            1.
        num_null_experts: int. N. Defaults to 0.
        group_score: str. The score of a group: that of its best expert
            (`"best"`; DeepSeek-V2, section 2.1.2), or the sum of its two best
            (`"two_best"`; DeepSeek-V3, section 2.1.2, and Mistral 4).
            `"auto"` (the default) is `"best"` for the scorings with a softmax,
            and `"two_best"` for those of each expert alone.

    Returns:
        An `Assignment`. The pairs of token t are at `t * K ... t * K + K-1`,
        its best expert first.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.top_k_assignment(logits, top_k=2)
    ```
    """
    router_logits = ops.convert_to_tensor(router_logits)
    num_experts = routing_checks.real_experts(
        routing_checks.num_columns(router_logits), num_null_experts
    )
    check_choice("scoring", scoring, SCORINGS)
    check_choice("group_score", group_score, GROUP_SCORES)
    routing_checks.check_token_choice(
        top_k, num_experts, normalize_weights, conditions
    )
    routing_checks.check_groups(num_experts, top_k, num_groups, top_k_groups)
    routing_checks.check_null_experts(num_null_experts, num_groups)
    routing_checks.check_positive(
        "routed_scaling_factor", routed_scaling_factor
    )
    masked = available_logits(router_logits, conditions)
    if scoring in OF_EACH_EXPERT:
        scores = _scores_of_each(scoring, masked)
        router_probs = as_probabilities(scores, conditions)
    else:
        scores = router_probs = softmax(masked)
    ranked = masked  # in the order of the scores, but not rounded like these
    if expert_bias is not None or num_groups > 1:
        biased = scores if expert_bias is None else scores + expert_bias
        ranked = available_logits(biased, conditions)
    if num_groups > 1:
        if group_score == "auto":
            each = scoring in OF_EACH_EXPERT
            group_score = "two_best" if each else "best"
        best = 2 if group_score == "two_best" else 1
        ranked = keep_best_groups(ranked, num_groups, top_k_groups, best)
    choice = choose(ranked, top_k, conditions)
    if num_groups > 1 and conditions.replay is None:
        # The groups of a token may have fewer than K experts that are on.
        outside = unavailable(choice.values(ranked))
        choice = choice.only(ops.logical_not(outside))
    if scoring == "topk_softmax":
        weights = softmax(choice.values(masked, UNAVAILABLE))
    elif normalize_weights and scoring in OF_EACH_EXPERT:
        # Not `normalized(scores)`: all of a token's scores may be 0 in float32.
        chosen = choice.values(masked, UNAVAILABLE)
        weights = softmax(_log_scores_of_each(scoring, chosen))
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


def _scores_of_each(scoring: str, logits: Tensor) -> Tensor:
    """Return the scores `(T, E + N)` of a scoring without a softmax."""
    if scoring == "sigmoid":
        return ops.sigmoid(logits)
    # The gradient of the root is infinite where float32 rounds softplus to 0.
    floor = ops.maximum(logits, LEAST_LOGIT)
    scores = ops.sqrt(ops.softplus(floor))
    return ops.where(logits < LEAST_LOGIT, ops.zeros_like(scores), scores)


def _log_scores_of_each(scoring: str, logits: Tensor) -> Tensor:
    """Return the logarithms of the scores, finite for all logits."""
    if scoring == "sigmoid":
        return ops.log_sigmoid(logits)
    # Far below zero, the logarithm of softplus is the logit itself.
    floor = ops.maximum(logits, LEAST_LOGIT)
    inner = ops.log(ops.softplus(floor))
    return 0.5 * ops.where(logits < LEAST_LOGIT, logits, inner)


def keep_best_groups(
    scores: Tensor, num_groups: int, top_k_groups: int, best: int
) -> Tensor:
    """Set the scores outside of a token's best groups to `UNAVAILABLE`.

    Args:
        scores: float32 `(T, E)`. `UNAVAILABLE` for experts that are off, which
            are excluded from the score of their group.
        num_groups: int. Number of groups, a divisor of E.
        top_k_groups: int. Number of groups to keep.
        best: int. The score of a group is the sum of this many best scores.

    Returns:
        `(T, E)`.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    kept = keras_moe.routing.keep_best_groups(
        logits, num_groups=2, top_k_groups=1, best=1
    )
    ```
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
    """Return expert biases that were moved against the load.

    They are `b_e + step_size * sign(mean load - load_e)`, with the load of all
    replicas of a step together. An even load changes no bias, since integers
    are compared.

    Reference: Wang et al. 2024, "Auxiliary-Loss-Free Load Balancing Strategy",
    algorithm 1.

    Args:
        expert_bias: float32 `(E,)`.
        expert_index: int32 `(P,)`. The chosen experts. An index of E or above
            is not counted.
        num_experts: int. E.
        step_size: float above 0. The paper uses 0.001.
        available: bool `(E,)`. False for experts that are off, which keep
            their bias and are excluded from the mean. `None` (the default) if
            all are on.

    Example:

    ```python
    bias = keras_moe.routing.balanced_bias(
        ops.zeros((4,)),
        expert_index=np.array([0, 0, 1], "int32"),
        num_experts=4,
        step_size=0.001,
    )
    ```
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
    # A mean that is not an integer is above its integer part, below the next.
    above = ops.cast(total > mean * num_on, "int32")
    direction = ops.sign(2 * (mean - counts) + above)
    moved = expert_bias + step_size * ops.cast(direction, "float32")
    if available is None:
        return moved
    return ops.where(available, moved, expert_bias)
