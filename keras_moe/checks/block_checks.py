"""Check arguments of `MoEBlock` that exclude each other."""

from typing import Any

from keras_moe.checks.argument_checks import (
    check_bool,
    check_choice,
    check_optional_int,
)

WEIGHTS_ON = ("outputs", "inputs")


def check_weights_on(weights_on: str, num_null_experts: int) -> str:
    """Return `weights_on` if it is one of `WEIGHTS_ON`.

    Raises:
        ValueError: If it is not, or if weights multiply the inputs and there
            are null experts, whose outputs are weighted.
    """
    check_choice("weights_on", weights_on, WEIGHTS_ON)
    if weights_on == "inputs" and num_null_experts:
        raise ValueError(
            "`weights_on` must be 'outputs' if the router has null experts, "
            "which multiply their outputs by the weights. Received: "
            f"weights_on={weights_on!r}, num_null_experts={num_null_experts}. "
            "Leave out one of the two."
        )
    return weights_on


def check_expert_capacity(
    expert_capacity: int | None, level: str, block: Any
) -> int | None:
    """Return `expert_capacity` if it is None or the block can have it.

    Args:
        expert_capacity: Argument of the block.
        level: Argument of the block.
        block: A `Mixture` with a router and capacity factors.

    Raises:
        ValueError: If it is no integer above 0, if there is also a capacity
            factor, if whole examples are routed, or if tokens differ in their
            number of pairs.
    """
    capacity = check_optional_int("expert_capacity", expert_capacity)
    if capacity is None:
        return None
    factors = (block.capacity_factor, block.eval_capacity_factor)
    if factors != (None, None):
        raise ValueError(
            "`expert_capacity` must be None if there is a capacity factor: "
            "both limit the pairs per expert. Received: expert_capacity="
            f"{capacity}, capacity_factor={factors[0]}, eval_capacity_factor="
            f"{factors[1]}. Leave out one of them."
        )
    if level == "token" and block.router.pairs_per_token is not None:
        return capacity
    raise ValueError(
        "`expert_capacity` must be None unless a router chooses equally many "
        "experts for each token of a sequence. Received: expert_capacity="
        f"{capacity}, level={level!r}, {type(block.router).__name__}. Pass "
        "`capacity_factor` instead."
    )


def check_compute_padding(compute_padding: bool, level: str) -> bool:
    """Return `compute_padding` if tokens are routed one by one, or it is False.

    Raises:
        ValueError: If it is no bool, or if whole examples are routed.
    """
    compute_padding = check_bool("compute_padding", compute_padding)
    if compute_padding and level == "example":
        raise ValueError(
            "`compute_padding` must be False if whole examples are routed: an "
            "example is routed by the mean of its tokens without padding. "
            f"Received: compute_padding=True, level={level!r}. Leave it out."
        )
    return compute_padding
