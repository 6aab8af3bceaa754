"""Check the arguments that all models pass to their blocks."""

from collections.abc import Callable
from typing import Any

import keras

from keras_moe import checks
from keras_moe.checks import expert_checks
from keras_moe.layers import BaseRouter


def checked(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of `Blocks` as plain Python values.

    Args:
        given: Dict from the name of each argument to its value as passed.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range.
    """
    activation = checks.check_activation(given["activation"])
    checks.check_is_a(
        "router",
        given["router"],
        (BaseRouter, type(None)),
        "None or a router",
        "Pass, for instance, keras_moe.Router(8, top_k=2).",
    )
    _check_reads_ids(given["router"])
    weight = given["load_balancing_weight"]
    if not _is_schedule(weight) and weight is not None:
        weight = checks.check_weight("load_balancing_weight", weight)
    plain: dict[str, Any] = {"load_balancing_weight": weight}
    for check, names in _CHECKS.items():
        plain |= {name: check(name, given[name]) for name in names}
    expert_checks.check_gated(activation, plain["gated"])
    plain["seed"] = checks.check_seed(given["seed"])
    return {**given, **plain}


def _check_reads_ids(router: BaseRouter | None) -> None:
    """Raise if a router reads hidden states, which models do not pass."""
    if router is None or router.router_inputs_kind != "states":
        return
    raise ValueError(
        "`router` must not read other states than the experts: a model passes "
        f"token ids to its routers. Received: router={router!r} with "
        f"router_inputs_dim={router.router_inputs_dim}. Leave it out, or "
        "build the model from MoEBlocks."
    )


def _is_schedule(value: object) -> bool:
    kind = keras.optimizers.schedules.LearningRateSchedule
    return isinstance(value, kind)


_CHECKS: dict[Callable[[str, Any], Any], tuple[str, ...]] = {
    checks.check_positive_int: (
        "num_layers",
        "hidden_dim",
        "num_heads",
        "intermediate_dim",
        "top_k",
        "moe_every",
    ),
    checks.check_optional_int: (
        "num_experts",
        "num_key_value_heads",
        "shared_expert_dim",
    ),
    checks.check_rate: ("dropout",),
    checks.check_bool: ("gated",),
    checks.check_capacity_factor: ("capacity_factor",),
}
