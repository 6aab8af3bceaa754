"""Balanced routing by optimal transport.

T tokens, E experts, K top_k.
"""

from keras import ops

from keras_moe.checks import (
    check_optional_int,
    check_positive_int,
    check_top_k,
    routing_checks,
)
from keras_moe.routing.assignment import (
    UNCONDITIONAL,
    Conditions,
    available_logits,
    choose,
    softmax,
    token_choice,
)
from keras_moe.types import UNAVAILABLE, Assignment, Tensor


def sinkhorn_assignment(
    router_logits: Tensor,
    top_k: int,
    num_iterations: int | None,
    conditions: Conditions = UNCONDITIONAL,
) -> Assignment:
    """Send each token to its K best experts of a balanced plan.

    The plan decides which experts are chosen. Their weights are the
    probabilities of the logits, as in S-BASE.

    Reference: Clark et al. 2022, "Unified Scaling Laws for Routed Language
    Models", section 2.2.

    Args:
        router_logits: float32 `(T, E)`.
        top_k: int. K.
        num_iterations: int. Iterations of `sinkhorn`. With `None` the logits
            decide, as in the papers at inference, when a token's experts must
            not depend on other tokens.
        conditions: `Conditions` of the batch.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.sinkhorn_assignment(
        logits, top_k=1, num_iterations=16
    )
    ```
    """
    router_logits = ops.convert_to_tensor(router_logits)
    routing_checks.check_conditions(conditions)
    top_k = check_top_k(top_k, routing_checks.num_columns(router_logits))
    num_iterations = check_optional_int("num_iterations", num_iterations)
    ranked = masked = available_logits(router_logits, conditions)
    probs = softmax(masked)
    if num_iterations is not None:
        ranked = sinkhorn(router_logits, conditions, num_iterations)
    choice = choose(ranked, top_k, conditions)
    weights = choice.values(probs)
    return token_choice(masked, probs, choice, weights, conditions)


def sinkhorn(
    router_logits: Tensor,
    conditions: Conditions = UNCONDITIONAL,
    num_iterations: int = 16,
) -> Tensor:
    """Scale `exp(logits)` so that all experts have about the same total.

    Each iteration normalizes the column of each expert and the row of each
    token, in logarithms. The largest entry of a row is then the token's expert
    in a nearly balanced assignment. No gradient flows through it.

    Reference: Sinkhorn 1964; Clark et al. 2022, "Unified Scaling Laws for
    Routed Language Models", section 2.2 and appendix B.2.1 (S-BASE), which
    relaxes the linear assignment of BASE (Lewis et al. 2021).

    Args:
        router_logits: float32 `(T, E)`.
        conditions: `Conditions` of the batch. Padding is excluded from the
            totals, and experts that are off from the plan.
        num_iterations: int. Larger logits need more iterations; 16 (the
            default) are enough for a standard deviation of about one.

    Returns:
        float32 `(T, E)`, the logarithm of the plan. Each row of the plan sums
        to one.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    plan = ops.exp(keras_moe.routing.sinkhorn(logits))
    ```
    """
    routing_checks.check_conditions(conditions)
    num_iterations = check_positive_int("num_iterations", num_iterations)
    log_plan = ops.stop_gradient(ops.convert_to_tensor(router_logits))
    log_plan = available_logits(log_plan, conditions)
    for _ in range(num_iterations):
        weighed = log_plan
        if conditions.token_mask is not None:
            valid = ops.expand_dims(conditions.token_mask, -1)
            weighed = ops.where(valid, log_plan, UNAVAILABLE)
        log_plan = log_plan - ops.logsumexp(weighed, axis=0, keepdims=True)
        log_plan = available_logits(log_plan, conditions)
        log_plan = log_plan - ops.logsumexp(log_plan, axis=1, keepdims=True)
    return log_plan
