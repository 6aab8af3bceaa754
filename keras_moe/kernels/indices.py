"""Counting, ranking and turning round: integers, on every backend.

T tokens, E experts, K top_k, P routed pairs. Nothing here has a gradient.
"""

import keras
from keras import ops

from keras_moe.types import Tensor


def top_k_index(scores: Tensor, top_k: int) -> Tensor:
    """Returns the columns of each row's K largest scores, the best first.

    Of equal scores the lower column comes first, on every backend. NaN is
    read as zero, since a sort that meets one may do anything; and so is -0.0,
    which some sorts put below 0.0.

    Args:
        scores: float `(T, E)`.
        top_k: K.

    Returns:
        int32 `(T, K)`.
    """
    scores = ops.stop_gradient(ops.convert_to_tensor(scores))
    ordered = ops.abs(scores) > 0
    scores = ops.where(ordered, scores, ops.zeros_like(scores))
    if keras.backend.backend() == "torch":
        from keras_moe.kernels import torch_indices

        return ops.cast(torch_indices.top_k_index(scores, top_k), "int32")
    return ops.cast(ops.top_k(scores, top_k)[1], "int32")


def inverse_permutation(order: Tensor) -> Tensor:
    """Returns where each element of a permutation went.

    Args:
        order: int32 `(P,)`, the element at each place.

    Returns:
        int32 `(P,)`, the place of each element.
    """
    order = ops.convert_to_tensor(order)
    if keras.backend.backend() == "torch":
        from keras_moe.kernels import torch_indices

        return torch_indices.inverse_permutation(order)
    size = ops.shape(order)[0]
    places = ops.arange(size, dtype="int32")
    return ops.scatter(ops.expand_dims(order, -1), places, (size,))


def group_sizes_of(expert_index: Tensor, num_experts: int) -> Tensor:
    """Counts the pairs of each expert.

    Args:
        expert_index: int32 `(P,)`; pairs with index E belong to no group.
        num_experts: E.

    Returns:
        int32 `(E,)`.
    """
    expert_index = ops.convert_to_tensor(expert_index)
    if keras.backend.backend() == "torch":
        from keras_moe.kernels import torch_indices

        return torch_indices.group_sizes_of(expert_index, num_experts)
    experts = ops.arange(num_experts, dtype="int32")
    chosen = ops.equal(ops.reshape(expert_index, (-1, 1)), experts)
    return ops.sum(ops.cast(chosen, "int32"), axis=0)
