"""What arguments must be, said in one form: the argument in backticks, the
rule, what was received, the remedy."""

import keras

from keras_moe.types import Activation, Shape, Tensor


def check_positive_int(name: str, value: object) -> int:
    """Returns `value` where it is an integer above 0."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and value > 0:  # type: ignore[operator]
        return value  # type: ignore[return-value]
    raise ValueError(
        f"`{name}` must be an integer above 0. Received: {name}={value!r}. "
        f"Pass, for instance, {name}=2."
    )


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Returns `value` where it is one of `choices`."""
    if value in choices:
        return value
    raise ValueError(
        f"`{name}` must be one of {choices}. Received: {name}={value!r}. "
        f"The default is {choices[0]!r}."
    )


def check_rate(name: str, value: float) -> float:
    """Returns `value` where it is a number in 0 <= value < 1."""
    if _is_number(value) and 0 <= value < 1:
        return value
    raise ValueError(
        f"`{name}` must be a number in 0 <= {name} < 1. Received: "
        f"{name}={value!r}. Pass 0 to switch it off."
    )


def check_remat(remat: bool, dropout: float) -> bool:
    """Returns `remat` where it goes with `dropout`."""
    if not (remat and dropout):
        return remat
    raise ValueError(
        "`remat` must be False where there is dropout: the units would be "
        "dropped anew when they are computed again. Received: "
        f"remat={remat!r}, dropout={dropout!r}. Set one of them to 0."
    )


def check_weight(name: str, value: float) -> float:
    """Returns `value` where it is a finite number, 0 or above."""
    if _is_number(value) and 0 <= value < float("inf"):
        return value
    raise ValueError(
        f"`{name}` must be a finite number, 0 or above. Received: "
        f"{name}={value!r}. Pass 0 to switch it off."
    )


def check_capacity_factor(name: str, value: float | None) -> float | None:
    """Returns `value` where it is None or a finite number above 0."""
    if value is None or (_is_number(value) and 0 < value < float("inf")):
        return value
    raise ValueError(
        f"`{name}` must be None (no token is dropped) or a finite number above "
        f"0. Received: {name}={value!r}. 1.25 is a common start."
    )


def check_above(name: str, value: float, low: float, high: float) -> float:
    """Returns `value` where it is a number in low < value <= high."""
    if _is_number(value) and low < value <= high and value < float("inf"):
        return value
    raise ValueError(
        f"`{name}` must be a finite number in {low} < {name} <= {high}. "
        f"Received: {name}={value!r}. Choose one inside."
    )


def check_groups(
    num_experts: int, top_k: int, num_groups: int, top_k_groups: int
) -> None:
    """Raises where K experts cannot be chosen from the best groups."""
    check_positive_int("num_groups", num_groups)
    check_positive_int("top_k_groups", top_k_groups)
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


def check_count(name: str, value: object) -> int:
    """Returns `value` where it is an integer, 0 or above."""
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if is_int and value >= 0:  # type: ignore[operator]
        return value  # type: ignore[return-value]
    raise ValueError(
        f"`{name}` must be an integer, 0 or above. Received: {name}={value!r}. "
        "Pass 0 for none."
    )


def check_top_k(top_k: int, num_experts: int) -> int:
    """Returns `top_k` where it is 1 ... num_experts."""
    check_positive_int("top_k", top_k)
    if top_k <= num_experts:
        return top_k
    raise ValueError(
        "`top_k` must be at most `num_experts`: a token's experts are "
        f"distinct. Received: top_k={top_k}, num_experts={num_experts}. Lower "
        "`top_k` or raise `num_experts`."
    )


def check_activation(activation: object) -> Activation:
    """Returns the Keras activation that `activation` names."""
    try:
        return keras.activations.get(activation)
    except (ValueError, TypeError) as error:
        raise ValueError(
            "`activation` must be a name in keras.activations or a function. "
            f"Received: activation={activation!r}. Try 'relu', 'gelu' or "
            "'silu'."
        ) from error


def check_input_shape(shape: Shape) -> int:
    """Returns the last dimension of `(..., D)` where D is known."""
    if len(shape) < 2:
        raise ValueError(
            "`inputs` must have rank 2 or more, (..., hidden_dim). Received: "
            f"shape {tuple(shape)}. Add a batch axis."
        )
    if shape[-1] is None:
        raise ValueError(
            "`inputs` must have a known last dimension: it sizes the weights. "
            f"Received: shape {tuple(shape)}. Give the model's Input a fixed "
            "last dimension."
        )
    return shape[-1]


def check_built_width(inputs: Tensor, hidden_dim: int | None) -> None:
    """Raises where the last dimension is not the one the layer has."""
    if inputs.shape[-1] != hidden_dim:
        raise ValueError(
            f"`inputs` must have {hidden_dim} as last dimension, the one this "
            f"layer was built with. Received: shape {tuple(inputs.shape)}. "
            "Project the inputs to that width or build another layer."
        )


def check_floating(inputs: Tensor) -> None:
    """Raises where the inputs are not floating-point numbers."""
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"`inputs` must be floating-point. Received: dtype {dtype}. Embed "
            "token ids with keras.layers.Embedding, or cast the inputs."
        )


def check_mask_shape(mask: Tensor, inputs: Tensor) -> None:
    """Raises where a mask `(...)` does not fit inputs `(..., D)`."""
    expected, received = tuple(inputs.shape[:-1]), tuple(mask.shape)
    fits = len(expected) == len(received) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(expected, received, strict=True)
    )
    if not fits:
        raise ValueError(
            "`mask` must have the shape of `inputs` without its last axis: one "
            f"bool a token. Received: mask of shape {received}, inputs of "
            f"shape {tuple(inputs.shape)}. Pass a mask of shape {expected}."
        )


def check_router_inputs(ids: Tensor, inputs: Tensor) -> None:
    """Raises where ids do not fit the first axes of inputs `(..., D)`."""
    leading, received = tuple(inputs.shape[:-1]), tuple(ids.shape)
    dtype = keras.backend.standardize_dtype(ids.dtype)
    fits = 0 < len(received) <= len(leading) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(leading, received, strict=False)
    )
    if not (fits and "int" in dtype):
        raise ValueError(
            "`router_inputs` must be integers, one for each token or for each "
            f"entry of the first axes of `inputs`. Received: dtype {dtype} and "
            f"shape {received}, inputs of shape {tuple(inputs.shape)}. Pass "
            f"integers of shape {leading}, or of its first axes."
        )


def check_router_inputs_given(
    layer: str, router_inputs: object, use: str
) -> None:
    """Raises where router inputs are missed, or would be lost.

    Args:
        layer: its class, for the message.
        router_inputs: as they came.
        use: `"none"`, `"optional"` or `"required"`.
    """
    if use == "required" and router_inputs is None:
        raise ValueError(
            f"`router_inputs` must be given: {layer} routes by them. Received: "
            "router_inputs=None. Call the layer with router_inputs=ids."
        )
    if use == "none" and router_inputs is not None:
        raise ValueError(
            f"`router_inputs` must be left out: {layer} does not use them. "
            f"Received: router_inputs={router_inputs!r}. Route by ids with "
            "HashRouter or RuleRouter."
        )


def check_null_experts(num_null_experts: int, num_groups: int) -> None:
    """Raises where null experts would belong to no group."""
    if num_null_experts and num_groups > 1:
        raise ValueError(
            "`num_null_experts` must be 0 where there are groups: a null "
            "expert belongs to none. Received: num_null_experts="
            f"{num_null_experts}, num_groups={num_groups}. Leave one out."
        )


def check_rule(rule: object):
    """Returns `rule` where it is None or a function."""
    if rule is None or callable(rule):
        return rule
    raise ValueError(
        "`rule` must be None or a function rule(inputs, router_inputs). "
        f"Received: rule={rule!r}. Pass ids as `router_inputs` and no rule, or "
        "a function."
    )


def check_default_expert(value: object, num_experts: int) -> int | None:
    """Returns `value` where it is None or in 0 ... E - 1."""
    if value is None or (
        isinstance(value, int)
        and not isinstance(value, bool)
        and 0 <= value < num_experts
    ):
        return value
    raise ValueError(
        f"`default_expert` must be None or in 0 ... {num_experts - 1}. "
        f"Received: default_expert={value!r}. Name an expert by its place."
    )


def check_max_experts(max_experts: int, top_k: int, num_experts: int) -> None:
    """Raises where `max_experts` is not in top_k ... E."""
    check_positive_int("max_experts", max_experts)
    if not top_k <= max_experts <= num_experts:
        raise ValueError(
            f"`max_experts` must be in top_k ... num_experts. Received: "
            f"max_experts={max_experts}, top_k={top_k}, num_experts="
            f"{num_experts}. Pass None for no limit."
        )


def check_sequence_length(shape: Shape):
    """Returns the axis before the last of `(..., S, D)`, rank 3 or more."""
    if len(shape) >= 3:
        return shape[-2]
    raise ValueError(
        "`load_balancing` must not be 'per_sequence' for inputs of rank 2, "
        f"which have no sequences. Received: inputs of shape {tuple(shape)}. "
        "Pass (batch, sequence, hidden_dim), or load_balancing='switch'."
    )


def check_expert_indices(
    indices: object, num_experts: int, least: int, disabled: set[int]
) -> list[int]:
    """Returns experts to switch off, where enough of the others are left.

    Args:
        indices: an iterable of expert indices.
        num_experts: E.
        least: experts that must stay.
        disabled: those that are off already.
    """
    found = [int(i) for i in indices]  # type: ignore[attr-defined]
    if not all(0 <= i < num_experts for i in found):
        raise ValueError(
            f"`expert_indices` must be in 0 ... {num_experts - 1}. Received: "
            f"{found}. Name experts by their place in the bank."
        )
    left = num_experts - len(disabled | set(found))
    if left < least:
        raise ValueError(
            f"`expert_indices` must leave {least} experts on: a token needs as "
            f"many. Received: {found}, with {sorted(disabled)} off already, "
            f"which leaves {left} of {num_experts}. Enable others first."
        )
    return found


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)
