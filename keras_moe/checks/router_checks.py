"""Check the arguments and the inputs of routers."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_moe.checks import (
    check_list,
    check_positive_int,
    check_weight,
)
from keras_moe.checks.argument_checks import is_index
from keras_moe.checks.layer_checks import is_same_shape
from keras_moe.types import Assignment, Tensor


def check_router_inputs(ids: Tensor, inputs: Tensor) -> None:
    """Raise if ids do not fit the first axes of inputs `(..., D)`."""
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


def check_previous_logits(logits: Tensor, inputs: Tensor, columns: int) -> None:
    """Raise unless logits are `(T, columns)` or `(..., columns)`.

    Args:
        logits: Tensor. Logits of a previous router.
        inputs: Tensor of shape `(..., D)`, T tokens in all.
        columns: Int. Width of the logits.
    """
    leading, received = tuple(inputs.shape[:-1]), tuple(logits.shape)
    tokens: int | None = 1
    for size in leading:
        tokens = None if None in (tokens, size) else tokens * size
    dtype = keras.backend.standardize_dtype(logits.dtype)

    def fits(shape: Sequence[Any]) -> bool:
        return len(shape) == len(received) and all(
            None in pair or pair[0] == pair[1]
            for pair in zip(shape, received, strict=True)
        )

    flat, shaped = (tokens, columns), (*leading, columns)
    if "float" not in dtype or not (fits(flat) or fits(shaped)):
        raise ValueError(
            "`router_inputs` must be the logits of a router with as many "
            f"experts for the same tokens. Received: dtype {dtype} and shape "
            f"{received}, inputs of shape {tuple(inputs.shape)}. Pass the "
            f"router_logits of the previous block's Assignment, floats of "
            f"shape {flat} or {shaped}."
        )


def check_router_inputs_given(router: Any, router_inputs: object) -> None:
    """Raise if router inputs are needed and missing, or given but not used.

    Args:
        router: A `BaseRouter`. Its `router_inputs_use` tells whether it needs
            them, and its `router_inputs_kind` what they are.
        router_inputs: The router inputs of the call, or None.
    """
    layer, use = type(router).__name__, router.router_inputs_use
    if use == "required" and router_inputs is None:
        raise ValueError(
            f"`router_inputs` must be given: {layer} routes by them. Received: "
            "router_inputs=None. Call the layer with router_inputs="
            f"{router.router_inputs_kind}."
        )
    if use == "none" and router_inputs is not None:
        raise ValueError(
            f"`router_inputs` must be left out: {layer} does not use them. "
            f"Received: router_inputs={router_inputs!r}. Route by ids with "
            "HashRouter or RuleRouter, or pass `router_inputs_dim` to a router "
            "that is to read hidden states."
        )
    if router.router_inputs_kind == "states":
        check_states(router, router_inputs)


def check_states(
    router: Any, states: Any, input_shape: Sequence[Any] | None = None
) -> None:
    """Raise unless states `(..., D')` fit a router and its inputs.

    Args:
        router: A `BaseRouter`, whose `router_inputs_dim` is D'.
        states: Float tensor, the router inputs of the call.
        input_shape: Shape `(..., D)` of the inputs. `None` (the default) checks
            the width only.
    """
    width = router.router_inputs_dim
    received = tuple(states.shape)
    expected = (*received[:-1], width)
    if input_shape is not None:
        expected = (*input_shape[:-1], width)
    dtype = keras.backend.standardize_dtype(states.dtype)
    if "float" in dtype and is_same_shape(received, expected):
        return
    raise ValueError(
        f"`router_inputs` must be floats of shape {expected}: the router reads "
        f"hidden states of width router_inputs_dim={width}, one for each "
        f"token. Received: dtype {dtype} and shape {received}. Pass the states "
        "of the same tokens, or build the router with their width."
    )


def check_replay(
    replay: Assignment | None, tokens: Tensor, columns: int
) -> Assignment | None:
    """Return `replay` if it is None or has as many tokens and experts."""
    if replay is None:
        return None
    if not isinstance(replay, Assignment):
        raise ValueError(
            "`replay` must be an Assignment. Received: "
            f"{type(replay).__name__}. Pass the second output of a block that "
            "was called with return_assignment=True."
        )
    expected, received = (tokens.shape[0], columns), replay.router_logits.shape
    if any(
        None not in pair and pair[0] != pair[1]
        for pair in zip(expected, received, strict=True)
    ):
        raise ValueError(
            "`replay` must have as many tokens and experts as the call. "
            f"Received: an Assignment of {received[0]} tokens and "
            f"{received[1]} experts, for {expected[0]} and {columns}. Pass "
            "the Assignment of the same batch."
        )
    return replay


def check_weights(name: str, value: Any, number: int) -> float | list[float]:
    """Return `value` if it is a finite number >= 0, or a list of `number`."""
    if hasattr(value, "tolist") and getattr(value, "ndim", 0) > 0:
        value = value.tolist()
    if not isinstance(value, (tuple, list)):
        return check_weight(name, value)
    if len(value) == number:
        return [check_weight(name, one) for one in value]
    raise ValueError(
        f"`{name}` must be a number, or one for each of {number} modalities. "
        f"Received: {name}={value!r}. Pass a list of {number} numbers."
    )


def ordered(indices: Any) -> Any:
    """Return a set of experts as a sorted list, and anything else unchanged."""
    if isinstance(indices, (set, frozenset)):
        return sorted(indices, key=str)
    return indices


def check_experts_of_modality(
    experts: Any, num_modalities: int, num_experts: int, top_k: int
) -> list[list[int]] | None:
    """Return lists of K experts or more, one per modality; or None."""
    if experts is None:
        return None
    rows = [
        check_list(
            "experts_of_modality", ordered(row), "experts for each modality"
        )
        for row in check_list("experts_of_modality", experts, "lists")
    ]
    valid = len(rows) == num_modalities and all(
        all(is_index(e, num_experts) for e in row) and len(set(row)) >= top_k
        for row in rows
    )
    if valid:
        return [[int(e) for e in row] for row in rows]
    raise ValueError(
        "`experts_of_modality` must list, for each of the "
        f"{num_modalities} modalities, top_k={top_k} or more experts in 0 ... "
        f"{num_experts - 1}. Received: experts_of_modality={experts!r}. Pass, "
        "for instance, [range(0, 4), range(4, 8)]."
    )


def check_rule(
    rule: Callable[[Tensor, Any], Tensor] | None,
) -> Callable[[Tensor, Any], Tensor] | None:
    """Return `rule` if it is None or a function."""
    if rule is None or callable(rule):
        return rule
    raise ValueError(
        "`rule` must be None or a function rule(inputs, router_inputs). "
        f"Received: rule={rule!r}. Pass a function, or leave `rule` out and "
        "pass ids as `router_inputs`."
    )


def check_max_experts(
    max_experts: int | None, top_k: int, num_experts: int
) -> int | None:
    """Return `max_experts` if it is None or in top_k ... E."""
    if max_experts is None:
        return None
    max_experts = check_positive_int("max_experts", max_experts)
    if not top_k <= max_experts <= num_experts:
        raise ValueError(
            f"`max_experts` must be in top_k ... num_experts. Received: "
            f"max_experts={max_experts}, top_k={top_k}, num_experts="
            f"{num_experts}. Pass None for no limit."
        )
    return max_experts


def check_expert_indices(
    indices: object, num_experts: int, least: int, disabled: set[int]
) -> list[int]:
    """Return experts to switch off if enough of the others stay on.

    Args:
        indices: Iterable of expert indices.
        num_experts: Int, E.
        least: Int. Number of experts that must stay on.
        disabled: Set of int. Experts that are off already.
    """
    found = check_list("expert_indices", ordered(indices), "expert indices")
    if not all(is_index(i, num_experts) for i in found):
        raise ValueError(
            f"`expert_indices` must be in 0 ... {num_experts - 1}. Received: "
            f"{found}. Pass the positions of experts in the bank."
        )
    found = [int(i) for i in found]
    left = num_experts - len(disabled | set(found))
    if left < least:
        raise ValueError(
            f"`expert_indices` must leave {least} experts on, as many as a "
            f"token needs. Received: {found}, with {sorted(disabled)} off "
            f"already, which leaves {left} of {num_experts}. Enable others "
            "first."
        )
    return found
