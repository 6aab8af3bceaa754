"""Tokens of several modalities, each with experts of its own.

T tokens, E experts, K top_k, M modalities.
"""

from keras import ops

from keras_moe.checks import routing_checks
from keras_moe.routing.assignment import (
    UNCONDITIONAL,
    Conditions,
    available_logits,
    choose,
    normalized,
    softmax,
    token_choice,
)
from keras_moe.types import UNAVAILABLE, Assignment, Tensor


def modality_assignment(
    router_logits: Tensor,
    allowed: Tensor | None,
    top_k: int,
    normalize_weights: bool = True,
    conditions: Conditions = UNCONDITIONAL,
) -> Assignment:
    """Send each token to the K best of its allowed experts.

    Probabilities are over the allowed experts alone. If fewer than K of them
    are on, the token has fewer experts, and its weights are normalized over
    these. The experts that a replay chose are allowed, too.

    Args:
        router_logits: float32 `(T, E)`.
        allowed: bool `(T, E)`. None if all experts are allowed.
        top_k: int. K.
        normalize_weights: bool. Whether a token's weights are divided by their
            sum. Defaults to `True`.
        conditions: `Conditions` of the batch.

    Returns:
        An `Assignment` with K pairs per token, its best expert first.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    # The first two experts are for the first three tokens.
    allowed = np.arange(6)[:, None] // 3 == np.arange(4) // 2
    assignment = keras_moe.routing.modality_assignment(logits, allowed, top_k=1)
    ```
    """
    router_logits = ops.convert_to_tensor(router_logits)
    routing_checks.check_token_choice(
        top_k,
        routing_checks.num_columns(router_logits),
        normalize_weights,
        conditions,
    )
    router_logits = masked = available_logits(router_logits, conditions)
    if allowed is not None:
        if conditions.replay is not None:
            allowed = ops.logical_or(
                allowed, _recorded(conditions.replay, top_k)
            )
        masked = ops.where(allowed, masked, UNAVAILABLE)
    probs = softmax(masked)
    choice = choose(masked, top_k, conditions)
    if allowed is not None:
        # Not `>`, so that NaN reaches the outputs.
        off = choice.values(masked) <= UNAVAILABLE / 2
        choice = choice.only(ops.logical_not(off))
    weights = choice.values(probs)
    if normalize_weights:
        weights = normalized(weights)
    return token_choice(router_logits, probs, choice, weights, conditions)


def _recorded(replay: Assignment, top_k: int) -> Tensor:
    """Return the experts that a replay chose, bool `(T, E)`."""
    num_experts = routing_checks.num_columns(replay.router_probs)
    index = ops.reshape(replay.expert_index, (-1, top_k, 1))
    experts = ops.arange(num_experts, dtype="int32")
    return ops.any(ops.equal(index, experts), axis=1)
