"""Check the plain arguments of routing functions.

E experts, N null experts, K top_k. Tensors are not checked, and neither are
numbers of tokens, which may be tensors or symbolic dimensions.
"""

from typing import Any

from keras_moe.checks import (
    INFINITY,
    check_above,
    check_bool,
    check_count,
    check_positive_int,
    check_top_k,
    check_weight,
    is_static,
)
from keras_moe.types import Tensor


def check_conditions(conditions: Any) -> None:
    """Raise if `conditions` are not `keras_moe.routing.Conditions`."""
    if hasattr(conditions, "token_mask") and hasattr(conditions, "replay"):
        return
    raise ValueError(
        "`conditions` must be keras_moe.routing.Conditions. Received: "
        f"conditions={conditions!r}. Leave them out if there are none."
    )


def check_token_choice(
    top_k: Any, num_experts: int, normalize_weights: Any, conditions: Any
) -> None:
    """Raise if tokens cannot choose `top_k` of E experts."""
    check_top_k(top_k, num_experts)
    check_bool("normalize_weights", normalize_weights)
    check_conditions(conditions)


def num_columns(x: Tensor) -> int:
    """Return the size of the last axis, which is a tensor in `torch.onnx`."""
    return int(x.shape[-1])


def real_experts(columns: int, num_null_experts: Any) -> int:
    """Return E for logits of E + N columns if E is above 0."""
    left: int = columns - check_count("num_null_experts", num_null_experts)
    if left > 0:
        return left
    raise ValueError(
        "`num_null_experts` must leave an expert among the columns of the "
        f"logits. Received: num_null_experts={num_null_experts}, "
        f"{columns} columns. Lower it."
    )


def check_num_experts(num_experts: Any, number: int) -> None:
    """Raise if `num_experts` is not the `number` of experts of a tensor."""
    if check_positive_int("num_experts", num_experts) != number:
        raise ValueError(
            "`num_experts` must be the number of experts of the other "
            f"arguments. Received: num_experts={num_experts}, arguments of "
            f"{number} experts. Pass num_experts={number}."
        )


def check_pairs(pairs_per_token: Any, num_pairs: Any) -> None:
    """Raise if a known number of pairs is not a multiple of K."""
    number = check_positive_int("pairs_per_token", pairs_per_token)
    if isinstance(num_pairs, int) and num_pairs % number:
        raise ValueError(
            "`pairs_per_token` must divide the number of pairs. Received: "
            f"pairs_per_token={number}, {num_pairs} pairs. Pass the router's "
            "`pairs_per_token`."
        )


def check_groups(
    num_experts: int, top_k: int, num_groups: Any, top_k_groups: Any
) -> tuple[int, int]:
    """Return both numbers of groups if K experts can be chosen from them."""
    num_groups = check_positive_int("num_groups", num_groups)
    top_k_groups = check_positive_int("top_k_groups", top_k_groups)
    if num_experts % num_groups:
        raise ValueError(
            "`num_groups` must divide `num_experts`. Received: "
            f"num_groups={num_groups}, num_experts={num_experts}. Choose a "
            "divisor."
        )
    if top_k_groups > num_groups:
        raise ValueError(
            "`top_k_groups` must be at most `num_groups`. Received: "
            f"top_k_groups={top_k_groups}, num_groups={num_groups}. Lower it."
        )
    if top_k > top_k_groups * num_experts // num_groups:
        raise ValueError(
            "`top_k` must be at most the experts in `top_k_groups` groups. "
            f"Received: top_k={top_k}, {top_k_groups} of {num_groups} groups "
            f"of {num_experts // num_groups}. Raise `top_k_groups`."
        )
    return num_groups, top_k_groups


def check_even_groups(top_k: int, top_k_groups: int) -> None:
    """Raise if the chosen groups cannot give equally many experts."""
    if top_k % top_k_groups:
        raise ValueError(
            "`top_k` must be a multiple of `top_k_groups`: all chosen groups "
            f"give equally many experts. Received: top_k={top_k}, top_k_groups="
            f"{top_k_groups}. Pass, for instance, top_k={top_k_groups}."
        )


def check_null_experts(num_null_experts: int, num_groups: int) -> None:
    """Raise if null experts would belong to no group."""
    if num_null_experts and num_groups > 1:
        raise ValueError(
            "`num_null_experts` must be 0 if there are groups: a null expert "
            f"belongs to none. Received: num_null_experts={num_null_experts}, "
            f"num_groups={num_groups}. Leave one of the two out."
        )


def check_positive(name: str, value: Any) -> None:
    """Raise if a plain number is not finite and above 0."""
    if is_static(value):
        check_above(name, value, 0, INFINITY)


def check_share(name: str, value: Any) -> None:
    """Raise if a plain number is not in 0 < value <= 1."""
    if is_static(value):
        check_above(name, value, 0, 1)


def check_loss_weight(name: str, value: Any) -> None:
    """Raise if a plain number is not finite and 0 or above."""
    if is_static(value):
        check_weight(name, value)
