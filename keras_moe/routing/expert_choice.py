"""Experts choose tokens.

T tokens, E experts, C expert_capacity, P = E * C routed pairs.
"""

from keras import ops

from keras_moe.checks import check_size, routing_checks
from keras_moe.kernels import smaller_size, take_rows, top_k_index
from keras_moe.routing.assignment import (
    UNCONDITIONAL,
    Conditions,
    available_logits,
    no_loss,
    softmax,
)
from keras_moe.types import UNAVAILABLE, Assignment, Tensor


def expert_choice_assignment(
    router_logits: Tensor,
    capacity: int | Tensor,
    conditions: Conditions = UNCONDITIONAL,
) -> Assignment:
    """Let each expert choose its C best tokens.

    Every expert has the same load. A token may have any number of experts,
    including none. The weight of a pair is the probability of the expert for
    the token. The experts of a token depend on all tokens, including later
    ones.

    Reference: Zhou et al. 2022, "Mixture-of-Experts with Expert Choice
    Routing", eq. 1-3.

    Args:
        router_logits: float32 `(T, E)`.
        capacity: int or int32 scalar. C, the tokens per expert. At most T
            tokens are chosen.
        conditions: `Conditions` of the batch. Padding is never computed.

    Returns:
        An `Assignment`. The pairs of expert e are at `e * C ... e * C + C-1`,
        its best token first.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.expert_choice_assignment(
        logits, capacity=3
    )
    ```
    """
    router_logits = ops.convert_to_tensor(router_logits)
    routing_checks.check_conditions(conditions)
    check_size("capacity", capacity)  # it is 0 for an empty batch
    router_logits = available_logits(router_logits, conditions)
    num_experts = router_logits.shape[1]
    probs = softmax(router_logits)
    if conditions.replay is not None:
        token = conditions.replay.token_index
        expert = conditions.replay.expert_index
    else:
        token, expert = _best_tokens(probs, capacity, conditions.token_mask)
    computed = expert < num_experts
    if conditions.available is not None:
        safe = ops.minimum(expert, num_experts - 1)
        computed = ops.logical_and(
            computed,
            take_rows(ops.convert_to_tensor(conditions.available), safe),
        )
    flat = token * num_experts + ops.minimum(expert, num_experts - 1)
    weights = take_rows(ops.reshape(probs, (-1,)), flat)
    if conditions.token_mask is not None:
        valid = take_rows(ops.convert_to_tensor(conditions.token_mask), token)
        computed = ops.logical_and(computed, valid)
    return Assignment(
        token_index=token,
        expert_index=ops.where(computed, expert, num_experts),
        combine_weights=ops.where(computed, weights, ops.zeros_like(weights)),
        router_probs=probs,
        router_logits=router_logits,
        router_loss=no_loss(),
    )


def _best_tokens(
    probs: Tensor, capacity: int | Tensor, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return each expert's best tokens, and the experts: int32 `(E * C,)`."""
    num_tokens, num_experts = ops.shape(probs)[0], probs.shape[1]
    capacity = smaller_size(capacity, num_tokens)
    scores = ops.transpose(probs)
    if token_mask is not None:
        scores = ops.where(token_mask, scores, UNAVAILABLE)
    token = ops.reshape(top_k_index(scores, capacity), (-1,))
    expert = ops.floor_divide(
        ops.arange(num_experts * capacity, dtype="int32"), capacity
    )
    return token, expert
