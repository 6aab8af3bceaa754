"""Choice of as many experts as a total probability needs.

T tokens, E experts, K the most experts per token.
"""

from keras import ops

from keras_moe.checks import check_bool, routing_checks
from keras_moe.kernels import mean_of_units
from keras_moe.routing.assignment import (
    UNCONDITIONAL,
    Conditions,
    available_logits,
    choose,
    normalized,
    softmax,
    token_choice,
)
from keras_moe.types import Assignment, Tensor


def top_p_assignment(
    router_logits: Tensor,
    top_p: float,
    top_k: int,
    normalize_weights: bool = False,
    entropy_weight: float = 0.0,
    conditions: Conditions = UNCONDITIONAL,
    over_replicas: bool = False,
) -> Assignment:
    """Send each token to its best experts until their probabilities reach p.

    Reference: Huang et al. 2024, "Harder Tasks Need More Experts: Dynamic
    Routing in MoE Models", eq. 4-6, and eq. 7 for the entropy loss.

    Args:
        router_logits: float32 `(T, E)`.
        top_p: float above 0 and at most 1. p.
        top_k: int. K. A token has 1 to K experts.
        normalize_weights: bool. Whether a token's weights are divided by their
            sum. Defaults to `False`, as in the paper.
        entropy_weight: float. Weight of the loss, which is the mean entropy of
            the probabilities in nats. Without the loss, training spreads the
            probabilities until tokens need all experts. Defaults to 0.
        conditions: `Conditions` of the batch.
        over_replicas: bool. Whether the loss is the mean over the tokens of
            all replicas; then every replica must make the call. Defaults to
            `False`.

    Returns:
        An `Assignment` with K pairs per token, its best expert first.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.top_p_assignment(logits, top_p=0.7, top_k=3)
    ```
    """
    router_logits = ops.convert_to_tensor(router_logits)
    routing_checks.check_token_choice(
        top_k,
        routing_checks.num_columns(router_logits),
        normalize_weights,
        conditions,
    )
    routing_checks.check_share("top_p", top_p)
    routing_checks.check_loss_weight("entropy_weight", entropy_weight)
    check_bool("over_replicas", over_replicas)
    masked = available_logits(router_logits, conditions)
    probs = softmax(masked)
    choice = choose(masked, top_k, conditions)
    weights = choice.values(probs)
    before = ops.cumsum(weights, axis=-1) - weights
    needed = ops.logical_not(before >= top_p)  # NaN reaches the outputs
    if conditions.replay is None:
        choice = choice.only(needed)
    else:
        needed = ops.logical_or(choice.computed, needed)
        weighed = ops.logical_and(choice.weighed, needed)
        choice = choice._replace(weighed=weighed)
    weights = choice.values(probs)
    if normalize_weights:
        weights = normalized(weights)
    entropy = _entropy(probs, conditions.counted, over_replicas)
    return token_choice(
        masked,
        probs,
        choice,
        weights,
        conditions,
        router_loss=entropy_weight * entropy,
    )


def _entropy(
    probs: Tensor, token_mask: Tensor | None, over_replicas: bool
) -> Tensor:
    logs = ops.log(ops.maximum(probs, 1e-30))
    entropy = ops.negative(ops.sum(probs * logs, axis=-1))
    valid = ops.ones_like(entropy)
    if token_mask is not None:
        valid = ops.cast(token_mask, "float32")
    total, count = ops.sum(entropy * valid), ops.sum(valid)
    return mean_of_units(total, count, over_replicas)
