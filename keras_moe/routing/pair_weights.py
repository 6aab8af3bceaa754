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
