"""The scores and the weights of the pairs of an `Assignment`.

T tokens, K top_k, P routed pairs.
"""

from keras_moe.checks import check_assignment, routing_checks
from keras_moe.kernels import light_ops as ops
from keras_moe.kernels import take_columns, take_rows
from keras_moe.types import Assignment, Tensor


def pair_scores(assignment: Assignment) -> Tensor:
    """Return the router probability of each pair, float32 `(P,)`.

    Args:
        assignment: `Assignment` of any routing algorithm. For a pair that is
            not computed, or of a null expert, the result is the probability of
            the last expert.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.top_k_assignment(logits, top_k=2)
    scores = keras_moe.routing.pair_scores(assignment)
    ```
    """
    check_assignment(assignment)
    probs = take_rows(
        ops.convert_to_tensor(assignment.router_probs),
        ops.convert_to_tensor(assignment.token_index),
    )
    last = routing_checks.num_columns(assignment.router_probs) - 1
    expert = ops.expand_dims(ops.minimum(assignment.expert_index, last), -1)
    return ops.squeeze(take_columns(probs, expert), -1)


def dense_weights(
    assignment: Assignment, pairs_per_token: int, experts: Tensor
) -> Tensor:
    """Return the combine weights as a table, float32 `(T, n)`.

    The weight of an expert that a token did not choose is zero.

    Args:
        assignment: `Assignment` of a token-choice algorithm.
        pairs_per_token: int. K.
        experts: int32 `(n,)`. The `expert_index` of each column.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.top_k_assignment(logits, top_k=2)
    table = keras_moe.routing.dense_weights(
        assignment, pairs_per_token=2, experts=ops.arange(4)
    )
    ```
    """
    check_assignment(assignment)
    routing_checks.check_pairs(
        pairs_per_token, assignment.expert_index.shape[0]
    )
    index = ops.reshape(assignment.expert_index, (-1, pairs_per_token, 1))
    weights = ops.reshape(assignment.combine_weights, (-1, pairs_per_token, 1))
    hits = ops.equal(index, experts)
    return ops.sum(ops.where(hits, weights, ops.zeros_like(weights)), axis=1)


def null_weight(assignment: Assignment, pairs_per_token: int) -> Tensor:
    """Return the sum of the weights of a token's null experts.

    Args:
        assignment: `Assignment` of a token-choice algorithm.
        pairs_per_token: int. K.

    Returns:
        float32 `(T, 1)`.

    Example:

    ```python
    logits = keras.random.normal((6, 5))  # 6 tokens, 4 experts, 1 null expert
    assignment = keras_moe.routing.top_k_assignment(
        logits, top_k=2, num_null_experts=1
    )
    share = keras_moe.routing.null_weight(assignment, pairs_per_token=2)
    ```
    """
    check_assignment(assignment)
    routing_checks.check_pairs(
        pairs_per_token, assignment.expert_index.shape[0]
    )
    num_experts = routing_checks.num_columns(assignment.router_probs)
    index = ops.reshape(assignment.expert_index, (-1, pairs_per_token))
    weights = ops.reshape(assignment.combine_weights, (-1, pairs_per_token))
    is_null = index > num_experts
    weights = ops.where(is_null, weights, ops.zeros_like(weights))
    return ops.sum(weights, axis=-1, keepdims=True)


def scale_weights(assignment: Assignment, expert_scale: Tensor) -> Assignment:
    """Multiply the combine weights of each expert by its factor.

    The weights of null experts do not change. Probabilities, and the losses
    that are computed from them, do not change either.

    Reference: Gemma 4 (`per_expert_scale` of its router).

    Args:
        assignment: `Assignment` of any routing algorithm.
        expert_scale: float32 `(E,)`. The factor of each expert.

    Returns:
        An `Assignment` with the same pairs.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.top_k_assignment(logits, top_k=2)
    scaled = keras_moe.routing.scale_weights(
        assignment, np.array([1.0, 2.0, 0.5, 1.0], "float32")
    )
    ```
    """
    check_assignment(assignment)
    expert_scale = ops.convert_to_tensor(expert_scale)
    num_experts = routing_checks.num_columns(assignment.router_probs)
    routing_checks.check_num_experts(num_experts, expert_scale.shape[0])
    index = ops.convert_to_tensor(assignment.expert_index)
    # Null experts, and pairs that are not computed, have the factor 1.
    factors = ops.pad(expert_scale, [[0, 1]], constant_values=1.0)
    weights = ops.convert_to_tensor(assignment.combine_weights)
    return assignment._replace(
        combine_weights=weights
        * take_rows(factors, ops.minimum(index, num_experts))
    )
