"""Check arguments of `MoEBlock` that exclude each other."""

from keras_moe.checks.argument_checks import check_choice

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
