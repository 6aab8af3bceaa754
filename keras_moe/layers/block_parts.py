"""What a block is made of: layers it was given, or built from its arguments.

A layer that was given brings its own arguments. One that is passed to the
block as well, and differs, would be lost without a word: that is an error.
"""

import keras

from keras_moe import checks
from keras_moe.layers import sharing
from keras_moe.layers.expert import Expert
from keras_moe.layers.expert_layers import ExpertLayers
from keras_moe.layers.initializers import reseeded
from keras_moe.layers.routers import Router
from keras_moe.layers.routers.base_router import BaseRouter

_ROUTER = (
    "None or a router",
    "Pass, for instance, keras_moe.Router(8), with the block's number.",
)
_EXPERTS = (
    "None, an Expert, or a list of layers",
    "Pass, for instance, keras_moe.Expert(64, 8), with the block's number.",
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


def num_experts_of(num_experts: int | None, experts, router) -> int:
    """Return the number of experts of a block, E.

    Args:
        num_experts: What the block was given. `None` takes the number of the
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
        if hasattr(part, "num_experts"):
            return part.num_experts
    raise ValueError(
        "`num_experts` must be given if neither `experts` nor `router` "
        f"determines it. Received: num_experts=None, experts={experts!r}, "
        f"router={router!r}. Pass, for instance, num_experts=8."
    )


def router_of(router, num_experts: int, arguments: dict, common: dict):
    """Returns the given router, or a `Router` of the arguments.

    Args:
        router: a layer with `num_experts`, or None.
        num_experts: E.
        arguments: what ROUTER_DEFAULTS names, or some of it.
        common: `seed` and `dtype` of a layer that is built.
    """
    if router is not None:
        checks.check_is_a("router", router, BaseRouter, *_ROUTER)
        _check_num_experts("router", router, num_experts)
        check_nothing_lost("router", router, arguments, ROUTER_DEFAULTS)
        return router
    top_k = checks.check_top_k(arguments["top_k"], num_experts)
    # The one weight of top-1 must stay the probability, or nothing is learned.
    normalize_weights = top_k > 1
    return Router(
        num_experts,
        normalize_weights=normalize_weights,
        name="router",
        **arguments,
        **common,
    )


def experts_of(experts, num_experts: int, arguments: dict, common: dict):
    """Returns the given experts, or an `Expert` bank of the arguments.

    Args:
        experts: a layer with `num_experts`, a list of layers, or None.
        num_experts: E.
        arguments: what EXPERT_DEFAULTS names.
        common: `seed` and `dtype` of a layer that is built.
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
    intermediate_dim: int | None, experts, arguments: dict, common: dict
) -> Expert | None:
    """Returns one expert in the style of the routed ones, or None."""
    if intermediate_dim is None:
        return None
    checks.check_positive_int("shared_expert_dim", intermediate_dim)
    style = {n: getattr(experts, n, v) for n, v in arguments.items()}
    style["intermediate_dim"] = intermediate_dim
    for name in ("kernel_initializer", "bias_initializer"):
        style[name] = reseeded(style[name], "shared_expert", 0)
    return Expert(name="shared_expert", **style, **common)


def shared_experts_of(experts, other):
    """Returns the experts that were given, or another block's.

    Args:
        experts: of the block, or None.
        other: a block to share experts with, or None.
    """
    if other is None:
        return experts
    if experts is not None or not hasattr(other, "experts"):
        raise ValueError(
            "`share_experts_with` must be a block with experts, and `experts` "
            f"left out beside it. Received: share_experts_with={other!r}, "
            f"experts={experts!r}. Pass one of the two."
        )
    return other.experts


def config_of(block, given: tuple[bool, bool]) -> dict:
    """Returns what of a block's config its parts stand for.

    Args:
        block: A layer with `router` and `experts`.
        given: whether each was passed to the block: it is saved whole then,
            as one that is shared is, and by the block's own arguments
            otherwise.
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


def with_layers(config: dict) -> dict:
    """Returns a block's config with the parts that were given as objects."""
    return sharing.deserialize_parts(
        config, "router", "experts", "load_balancing_weight"
    )


def _check_num_experts(name, layer, num_experts):
    own = getattr(layer, "num_experts", None)
    if own != num_experts:
        raise ValueError(
            f"`{name}` must have the block's `num_experts`. Received: "
            f"num_experts={num_experts}, {name} with num_experts={own}. Build "
            "both with the same number."
        )


def check_nothing_lost(
    name: str, layer, arguments: dict, defaults: dict
) -> None:
    """Raises where an argument is set that the given layer overrides.

    Args:
        name: of the argument by which the layer was given.
        layer: the layer.
        arguments: dict of what was passed beside it.
        defaults: dict from the names to the values that mean nothing.
    """

    def plain(value):
        return sharing.unmarked(keras.saving.serialize_keras_object(value))

    for argument, value in arguments.items():
        default = defaults[argument]
        own = getattr(layer, argument, default)
        if plain(value) not in (plain(default), plain(own)):
            raise ValueError(
                f"`{argument}` must be left out where `{name}` is given: the "
                f"layer brings its own. Received: {argument}={value!r}, {name} "
                f"with {argument}={own!r}. Set it on the layer passed as "
                f"`{name}`."
            )
