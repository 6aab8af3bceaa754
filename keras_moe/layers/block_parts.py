"""The parts of a block: layers that it was given, or builds from arguments.

A given layer has its own arguments. If one of them is also passed to the block,
with another value, that value would be ignored silently: this is an error.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import keras

from keras_moe import checks
from keras_moe.layers import sharing
from keras_moe.layers.expert import Expert
from keras_moe.layers.expert_layers import ExpertLayers
from keras_moe.layers.initializers import reseeded
from keras_moe.layers.routers import Router
from keras_moe.layers.routers.base_router import BaseRouter
from keras_moe.layers.shared_gate import SharedExpertGate

Experts: TypeAlias = keras.layers.Layer | Sequence[keras.layers.Layer]
"""A layer with all experts, or one layer per expert."""

_ROUTER = (
    "None or a router",
    "Pass, for instance, keras_moe.Router(8), with the same num_experts.",
)
_EXPERTS = (
    "None, an Expert, or a list of layers",
    "Pass, for instance, keras_moe.Expert(64, 8), with the same num_experts.",
)
ROUTER_DEFAULTS = {"top_k": 2, "jitter": 0.0}
EXPERT_DEFAULTS = {
    "intermediate_dim": None,
    "activation": keras.activations.relu,
    "gated": False,
    "use_bias": True,
    "dropout": 0.0,
    "kernel_initializer": keras.initializers.GlorotUniform(),
    "bias_initializer": keras.initializers.Zeros(),
    "kernel_regularizer": None,
    "bias_regularizer": None,
    "kernel_constraint": None,
    "bias_constraint": None,
    "remat": False,
}


def num_experts_of(
    num_experts: int | None, experts: Experts | None, router: BaseRouter | None
) -> int:
    """Return the number of experts of a block, E.

    Args:
        num_experts: Argument of the block. `None` takes the number of the
            given experts, or else of the given router.
        experts: A layer with `num_experts`, a list of layers, or `None`.
        router: A layer with `num_experts`, or `None`.

    Raises:
        ValueError: If all three are `None`.
    """
    if num_experts is not None:
        return num_experts
    if isinstance(experts, (list, tuple)) and experts:
        return len(experts)
    for part in (experts, router):
        number: int | None = getattr(part, "num_experts", None)
        if number is not None:
            return number
    raise ValueError(
        "`num_experts` must be given if neither `experts` nor `router` "
        f"determines it. Received: num_experts=None, experts={experts!r}, "
        f"router={router!r}. Pass, for instance, num_experts=8."
    )


def router_of(
    router: BaseRouter | None,
    num_experts: int,
    arguments: dict[str, Any],
    common: dict[str, Any],
) -> BaseRouter:
    """Return the given router, or a `Router` built from the arguments.

    Args:
        router: A layer with `num_experts`, or None.
        num_experts: Int, E.
        arguments: Dict of all or some arguments that ROUTER_DEFAULTS names.
        common: Dict of `seed` and `dtype` for a layer that is built.
    """
    if router is not None:
        checks.check_is_a("router", router, BaseRouter, *_ROUTER)
        _check_num_experts("router", router, num_experts)
        check_nothing_lost("router", router, arguments, ROUTER_DEFAULTS)
        return router
    top_k = checks.check_top_k(arguments["top_k"], num_experts)
    # The router learns from its single weight only if it is the probability.
    normalize_weights = top_k > 1
    return Router(
        num_experts,
        normalize_weights=normalize_weights,
        name="router",
        **arguments,
        **common,
    )


def experts_of(
    experts: Experts | None,
    num_experts: int,
    arguments: dict[str, Any],
    common: dict[str, Any],
) -> keras.layers.Layer:
    """Return the given experts, or an `Expert` built from the arguments.

    Args:
        experts: A layer with `num_experts`, a list of layers, or None.
        num_experts: Int, E.
        arguments: Dict of the arguments that EXPERT_DEFAULTS names.
        common: Dict of `seed` and `dtype` for a layer that is built.
    """
    if isinstance(experts, (list, tuple)):
        experts = ExpertLayers(experts, name="experts")
    if experts is not None:
        checks.check_is_a("experts", experts, keras.layers.Layer, *_EXPERTS)
        _check_num_experts("experts", experts, num_experts)
        check_nothing_lost("experts", experts, arguments, EXPERT_DEFAULTS)
        return experts
    return Expert(
        num_experts=num_experts, name="experts", **arguments, **common
    )


def shared_expert_of(
    intermediate_dim: int | None,
    experts: keras.layers.Layer,
    arguments: dict[str, Any],
    common: dict[str, Any],
) -> Expert | None:
    """Return one expert with the arguments of the routed ones, or None."""
    if intermediate_dim is None:
        return None
    checks.check_positive_int("shared_expert_dim", intermediate_dim)
    style = {n: getattr(experts, n, v) for n, v in arguments.items()}
    style["intermediate_dim"] = intermediate_dim
    for name in ("kernel_initializer", "bias_initializer"):
        style[name] = reseeded(style[name], "shared_expert", 0)
    return Expert(name="shared_expert", **style, **common)


def shared_gate_of(
    has_gate: bool, shared_expert: Expert | None, dtype: Any
) -> SharedExpertGate | None:
    """Return the gate of the shared expert, or None.

    Args:
        has_gate: Argument `shared_expert_gate` of the block.
        shared_expert: The shared expert, or None.
        dtype: Dtype policy of the block.

    Raises:
        ValueError: If there is a gate, but no shared expert.
    """
    if not checks.check_bool("shared_expert_gate", has_gate):
        return None
    if shared_expert is None:
        raise ValueError(
            "`shared_expert_gate` must be False without a shared expert. "
            f"Received: shared_expert_gate={has_gate!r}, "
            "shared_expert_dim=None. Pass `shared_expert_dim`, the width of "
            "the shared expert."
        )
    return SharedExpertGate(
        reseeded(shared_expert.kernel_initializer, "shared_expert_gate", 0),
        name="shared_expert_gate",
        dtype=dtype,
    )


def shared_experts_of(
    experts: Experts | None, other: keras.layers.Layer | None
) -> Experts | None:
    """Return the given experts, or those of another block.

    Args:
        experts: Argument `experts` of the block, or None.
        other: Block to share experts with, or None.
    """
    if other is None:
        return experts
    if experts is not None or not hasattr(other, "experts"):
        raise ValueError(
            "`share_experts_with` must be a block with experts, and `experts` "
            f"must be left out. Received: share_experts_with={other!r}, "
            f"experts={experts!r}. Pass one of the two."
        )
    return other.experts


def config_of(block: Any, given: tuple[bool, bool]) -> dict[str, Any]:
    """Return the entries of a block's config for its router and experts.

    Args:
        block: A layer with `router` and `experts`.
        given: Whether the router and the experts were passed to the block.
            Given and shared layers are saved as layers, others by the
            arguments of the block.
    """
    config = {}
    for name, layer, is_given, defaults in (
        ("router", block.router, given[0], ROUTER_DEFAULTS),
        ("experts", block.experts, given[1], EXPERT_DEFAULTS),
    ):
        if is_given or sharing.was_shared(layer):
            config[name] = sharing.serialize_part(layer, block)
        else:
            own = layer.get_config()
            config |= {argument: own[argument] for argument in defaults}
    return config


def with_layers(config: dict[str, Any]) -> dict[str, Any]:
    """Return a block's config with its saved layers built."""
    return sharing.deserialize_parts(
        config, "router", "experts", "load_balancing_weight"
    )


def _check_num_experts(name: str, layer: Any, num_experts: int) -> None:
    own = getattr(layer, "num_experts", None)
    if own != num_experts:
        raise ValueError(
            f"`{name}` must have the block's `num_experts`. Received: "
            f"num_experts={num_experts}, {name} with num_experts={own}. Build "
            "both with the same number."
        )


def check_nothing_lost(
    name: str,
    layer: Any,
    arguments: dict[str, Any],
    defaults: dict[str, Any],
) -> None:
    """Raise if an argument differs from that of the given layer.

    Args:
        name: Str. Name of the argument by which the layer was given.
        layer: The layer.
        arguments: Dict of the other arguments of the block.
        defaults: Dict from the names to the default values, which the layer
            may override.
    """

    def plain(value: Any) -> Any:
        return sharing.unmarked(keras.saving.serialize_keras_object(value))

    for argument, value in arguments.items():
        default = defaults[argument]
        own = getattr(layer, argument, default)
        if plain(value) not in (plain(default), plain(own)):
            raise ValueError(
                f"`{argument}` must be left out if `{name}` is given: the "
                f"layer has its own. Received: {argument}={value!r}, {name} "
                f"with {argument}={own!r}. Set it on the layer passed as "
                f"`{name}`."
            )
