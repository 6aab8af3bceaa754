"""Sums and means over tokens that exclude padding.

T tokens, E experts.
"""

from keras_moe.kernels import light_ops as ops
from keras_moe.kernels import mean_of_units
from keras_moe.types import Tensor


def mean_over_tokens(
    values: Tensor, token_mask: Tensor | None, over_replicas: bool = False
) -> Tensor:
    """Return the mean of `(T, .)` over the tokens that are not padding.

    These are the tokens of this replica or of all replicas.
    """
    total, count = sum_over_tokens(values, token_mask)
    return mean_of_units(total, count, over_replicas)


def sum_over_tokens(
    values: Tensor, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the sum of `(T, .)` over real tokens, and their number.

    Padding tokens are excluded. The number is a float32 scalar.
    """
    values = ops.cast(values, "float32")
    if token_mask is None:
        token_mask = ops.ones_like(values[:, 0], dtype="bool")
    valid = ops.expand_dims(token_mask, -1)
    total = ops.sum(ops.where(valid, values, ops.zeros_like(values)), axis=0)
    return total, ops.sum(ops.cast(token_mask, "float32"))


def count_available(available: Tensor | None, num_experts: int) -> int | Tensor:
    """Return the number of experts that are on, an int or a float32 scalar."""
    if available is None:
        return num_experts
    return ops.sum(ops.cast(available, "float32"))
