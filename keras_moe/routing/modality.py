"""Tokens of several kinds, each with experts of its own.

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
    """Sends each token to the K best of the experts it is allowed.

    Probabilities are over those experts alone. Where fewer than K of them are
    on, the token has fewer, and its weights are normalised among them. A
    replay allows what it chose.

    Args:
        router_logits: float32 `(T, E)`.
        allowed: bool `(T, E)`, or None where a token may have any expert.
        top_k: K.
        normalize_weights: whether a token's weights are divided by their sum.
        conditions: of the batch.

    Returns:
        An `Assignment` with K pairs a token, its best expert first.
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
        # Not `>`: NaN passes, to be seen.
        off = choice.values(masked) <= UNAVAILABLE / 2
        choice = choice.only(ops.logical_not(off))
    weights = choice.values(probs)
    if normalize_weights:
        weights = normalized(weights)
    return token_choice(router_logits, probs, choice, weights, conditions)


def _recorded(replay: Assignment, top_k: int) -> Tensor:
    """Bool `(T, E)`, the experts that a replay chose."""
    num_experts = routing_checks.num_columns(replay.router_probs)
    index = ops.reshape(replay.expert_index, (-1, top_k, 1))
    experts = ops.arange(num_experts, dtype="int32")
    return ops.any(ops.equal(index, experts), axis=1)
