"""PyTorch: what `indices.py` asks for, where keras.ops is slow on it.

T tokens, E experts, K top_k, P routed pairs.
"""

import torch

from keras_moe.types import Tensor


def top_k_index(scores: Tensor, top_k: int) -> Tensor:
    """The columns of each row's K largest, int64 `(T, K)`.

    `torch.topk` leaves open which of two equal scores comes first. The bits
    of a float32 rise with its value (those of a negative one fall), so score
    and column make one integer that is never equal to another: four times as
    fast as a stable sort of 64 columns, ten of 128.
    """
    num_columns = scores.shape[-1]
    bits = scores.float().view(torch.int32)
    bits = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64)
    columns = torch.arange(num_columns, device=scores.device)
    keys = bits * num_columns + (num_columns - 1 - columns)
    best = torch.topk(keys, top_k, dim=-1).values
    return num_columns - 1 - best % num_columns


def inverse_permutation(order: Tensor) -> Tensor:
    """The place of each element, of the dtype of `order`, `(P,)`."""
    places = torch.arange(len(order), dtype=order.dtype, device=order.device)
    return torch.empty_like(order).scatter_(0, order.long(), places)


def group_sizes_of(expert_index: Tensor, num_experts: int) -> Tensor:
    """How many pairs each expert has, int32 `(E,)`; no count on the host."""
    sizes = expert_index.new_zeros(num_experts + 1, dtype=torch.int32)
    ones = torch.ones_like(expert_index, dtype=torch.int32)
    return sizes.scatter_add_(0, expert_index.long(), ones)[:num_experts]
