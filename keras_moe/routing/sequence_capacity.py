"""An absolute capacity of experts, which holds for each sequence.

T tokens, B sequences of L pairs, E experts, C expert_capacity, P = B * L routed
pairs.
"""

from typing import Any

from keras import ops

from keras_moe.checks import (
    check_assignment,
    check_choice,
    check_positive_int,
    check_size,
    is_static,
    routing_checks,
)
from keras_moe.kernels import light_ops, take_columns
from keras_moe.routing.capacity import PRIORITIES, only_pairs
from keras_moe.routing.pair_weights import pair_scores
from keras_moe.types import Assignment, Tensor


def apply_sequence_capacity(
    assignment: Assignment,
    capacity: int,
    num_sequences: int | Tensor,
    pairs_per_sequence: int | Tensor,
    priority: str = "position",
) -> Assignment:
    """Drop the pairs over the capacity of their expert in their sequence.

    Memory grows with `P * E`.

    Reference: Fedus et al. 2021, "Switch Transformers", section 2.2, as in
    `switch_transformers` of transformers.

    Args:
        assignment: `Assignment` of a router with equally many pairs per token.
        capacity: int. C, the most pairs of a sequence per expert.
        num_sequences: int or int32 scalar. B, the number of sequences, whose
            tokens lie in order.
        pairs_per_sequence: int or int32 scalar. L, the pairs of each sequence,
            including those of padding.
        priority: str. `"position"` (the default) or `"score"`, as in
            `apply_capacity`, within each sequence.

    Returns:
        The assignment, with dropped pairs as in `apply_capacity`.

    Example:

    ```python
    logits = np.array([[1, 0], [1, 0], [1, 0], [0, 1]], "float32")
    assignment = keras_moe.routing.top_k_assignment(logits, 1)
    kept = keras_moe.routing.apply_sequence_capacity(assignment, 1, 2, 2)
    index = kept.expert_index  # [0, 2, 0, 1]: the second token is dropped
    ```
    """
    check_assignment(assignment)
    capacity = check_positive_int("capacity", capacity)
    check_size("num_sequences", num_sequences)
    check_size("pairs_per_sequence", pairs_per_sequence)
    check_choice("priority", priority, PRIORITIES)
    num_experts = routing_checks.num_columns(assignment.router_probs)
    shape = (num_sequences, pairs_per_sequence)
    _check_pairs(shape, assignment.expert_index.shape[0])
    index = ops.reshape(assignment.expert_index, shape)
    if priority == "position":
        rank = _rank_in_sequences(index, num_experts)
    else:
        score = ops.stop_gradient(ops.reshape(pair_scores(assignment), shape))
        score = ops.where(ops.isnan(score), ops.zeros_like(score), score)
        best = light_ops.argsort(-score)
        rank = _rank_in_sequences(take_columns(index, best), num_experts)
        place = light_ops.argsort(best)
        rank = take_columns(rank, place)
    return only_pairs(assignment, ops.reshape(rank, (-1,)) < capacity)


def _check_pairs(shape: tuple[Any, Any], num_pairs: int | None) -> None:
    """Raise if B * L is not the number of pairs, P, if all are known."""
    known = all(map(is_static, (*shape, num_pairs))) and num_pairs is not None
    if known and shape[0] * shape[1] != num_pairs:
        raise ValueError(
            "`num_sequences` times `pairs_per_sequence` must be the number of "
            f"pairs. Received: num_sequences={shape[0]}, pairs_per_sequence="
            f"{shape[1]}, {num_pairs} pairs. Pass the number of sequences, and "
            "top_k times their length."
        )


def _rank_in_sequences(expert_index: Tensor, num_experts: int) -> Tensor:
    """Count the earlier pairs of the same expert in each sequence, `(B, L)`.

    The rank is -1 for pairs that no expert computes.
    """
    experts = ops.arange(num_experts, dtype="int32")
    chosen = ops.equal(ops.expand_dims(expert_index, -1), experts)
    chosen = ops.cast(chosen, "int32")
    return ops.sum(chosen * ops.cumsum(chosen, axis=1), axis=-1) - 1
