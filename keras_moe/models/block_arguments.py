"""Check the arguments that all models hand to their blocks."""

from typing import Any

import keras

from keras_moe import checks
from keras_moe.layers import BaseRouter


def checked(given: dict) -> dict:
    """Return the arguments of `Blocks` as plain Python values.

    Args:
        given: All of them by name, as they were passed.

    Raises:
        ValueError: If one is out of its range or of a wrong type.
    """
    checks.check_activation(given["activation"])
    checks.check_is_a(
        "router",
        given["router"],
        (BaseRouter, type(None)),
        "None or a router",
        "Pass, for instance, keras_moe.Router(8, top_k=2).",
    )
    weight = given["load_balancing_weight"]
    if not _is_schedule(weight) and weight is not None:
        weight = checks.check_weight("load_balancing_weight", weight)
    plain: dict[str, Any] = {"load_balancing_weight": weight}
    for check, names in _CHECKS.items():
        plain |= {name: check(name, given[name]) for name in names}
    plain["seed"] = checks.check_seed(given["seed"])
    return {**given, **plain}


def _is_schedule(value):
    kind = keras.optimizers.schedules.LearningRateSchedule
    return isinstance(value, kind)


_CHECKS: dict = {
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
