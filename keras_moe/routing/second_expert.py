"""Drop second experts with small weights.

T tokens, K top_k.
"""

from keras import ops

from keras_moe.checks import check_assignment, routing_checks
from keras_moe.types import Assignment, Tensor

SECOND_EXPERTS = ("random", "threshold", "all")


def first_choices(assignment: Assignment, pairs_per_token: int) -> Assignment:
    """Return only the first pair of each token, that of its best expert.

    Args:
        assignment: `Assignment` of a token-choice algorithm.
        pairs_per_token: int. K.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.top_k_assignment(logits, top_k=2)
    best = keras_moe.routing.first_choices(assignment, pairs_per_token=2)
    ```
    """
    by_token = (-1, pairs_per_token)

    def first(x: Tensor) -> Tensor:
        return ops.reshape(x, by_token)[:, 0]

    return assignment._replace(
        token_index=first(assignment.token_index),
        expert_index=first(assignment.expert_index),
        combine_weights=first(assignment.combine_weights),
    )


def drop_weak_second(
    assignment: Assignment, threshold: float, noise: Tensor | None = None
) -> Assignment:
    """Drop second experts with small weights; first experts keep theirs.

    With noise, a second expert of weight w2 is kept with the probability
    `min(1, w2 / threshold)`. Without noise, it is kept if `w2 > threshold`.

    Reference: Lepikhin et al. 2020, "GShard", algorithm 1, line 18, with
    `threshold=0.5`; Zoph et al. 2022, "ST-MoE", appendix C, with 0.2.

    Args:
        assignment: `Assignment` of `top_k_assignment` with K = 2 and
            normalized weights.
        threshold: float above 0 and at most 1.
        noise: float32 `(T,)`, uniform in 0 ... 1. `None` (the default) for no
            noise.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.top_k_assignment(logits, top_k=2)
    kept = keras_moe.routing.drop_weak_second(assignment, threshold=0.2)
    ```
    """
    check_assignment(assignment)
    routing_checks.check_share("threshold", threshold)
    num_experts = routing_checks.num_columns(assignment.router_probs)
    second = ops.reshape(assignment.combine_weights, (-1, 2))[:, 1]
    if noise is None:
        kept = second > threshold
    else:
        kept = second > threshold * noise
    kept = ops.stack([ops.ones_like(kept), kept], axis=-1)
    kept = ops.reshape(kept, (-1,))
    weights = assignment.combine_weights
    return assignment._replace(
        expert_index=ops.where(kept, assignment.expert_index, num_experts),
        combine_weights=ops.where(kept, weights, ops.zeros_like(weights)),
    )
