"""Check the arguments of transformer blocks."""

from typing import Any

import keras

from keras_moe import checks
from keras_moe.types import Shape, Tensor


def check_num_key_value_heads(value: int | None, num_heads: int) -> int | None:
    """Return `value` if it is None or a divisor of `num_heads`."""
    if value is None:
        return None
    value = checks.check_positive_int("num_key_value_heads", value)
    if num_heads % value == 0:
        return value
    raise ValueError(
        "`num_key_value_heads` must divide `num_heads`: equally many heads "
        f"share each key head. Received: num_key_value_heads={value}, "
        f"num_heads={num_heads}. Pass None for one key head per head."
    )


def check_width(shape: Shape, num_heads: int, rotary: bool = False) -> int:
    """Return D of a shape `(B, S, D)` if `num_heads` divides D."""
    width = checks.check_input_shape(shape)
    if len(shape) != 3 or width % num_heads:
        raise ValueError(
            "`inputs` must be (batch, length, hidden_dim) with a hidden_dim "
            f"that `num_heads` divides. Received: shape {tuple(shape)}, "
            f"num_heads={num_heads}. Change `num_heads` or the width of the "
            "inputs."
        )
    if rotary and width // num_heads % 2:
        raise ValueError(
            "`rotary` must be False if the width of a head, hidden_dim / "
            f"num_heads, is odd. Received: shape {tuple(shape)}, num_heads="
            f"{num_heads}. Change `num_heads`, or pass rotary=False."
        )
    return width


def check_moe(moe: object) -> keras.layers.Layer:
    """Return `moe` if it is a Keras layer."""
    return checks.check_is_a(
        "moe",
        moe,
        keras.layers.Layer,
        "a Keras layer, the feed-forward part",
        "Pass a MoEBlock, or Expert(F) for the dense twin.",
    )


def check_causal(moe: Any) -> None:
    """Raise if a token's experts may depend on later tokens."""
    router = getattr(moe, "router", None)
    if not getattr(moe, "causal", True):
        level = getattr(moe, "level", None)
        raise ValueError(
            "`moe` must be causal, and so must its router: otherwise the model "
            "would read the tokens that it predicts. Received: "
            f"{type(moe).__name__} with router {type(router).__name__} and "
            f"level={level!r}, which are not declared causal. Use Router and "
            "level='token'; set the attribute `causal = True` in a router of "
            "your own that does not read later tokens."
        )
    if router is None:
        return
    capacities = {
        name: getattr(moe, name, None)
        for name in (
            "capacity_factor",
            "eval_capacity_factor",
            "expert_capacity",
        )
    }
    if moe.priority == "score" and set(capacities.values()) != {None}:
        raise ValueError(
            "`moe` must not have both priority='score' and a capacity: later "
            f"tokens would displace earlier ones. Received: {capacities}. Use "
            "priority='position'."
        )


def check_cacheable(moe: Any) -> None:
    """Raise if a token's experts may depend on other tokens."""
    router = getattr(moe, "router", None)
    if router is not None and router.reads_context:
        raise ValueError(
            "`cache` must be None if the router reads other tokens than the "
            f"one it routes. Received: a cache, {type(router).__name__}. Call "
            "the layer on whole sequences (generate(use_cache=False))."
        )
    for name in ("eval_capacity_factor", "expert_capacity"):
        if getattr(moe, name, None) is not None:
            raise ValueError(
                "`cache` must be None if tokens are dropped in evaluation: "
                "whether a token is dropped depends on the others. Received: a "
                f"cache, {name}={getattr(moe, name)!r}. Pass {name}=None."
            )


def check_moe_shape(block: Any, input_shape: Shape) -> None:
    """Raise if a block's feed-forward part changes the shape of its inputs."""
    try:
        shape = block.moe.compute_output_shape(input_shape)
    except NotImplementedError:  # the layer has only `compute_output_spec`
        inputs = keras.KerasTensor(input_shape, block.compute_dtype)
        shape = getattr(block.moe.compute_output_spec(inputs), "shape", None)
    if not checks.is_same_shape(shape, tuple(input_shape)):
        raise ValueError(
            "`moe` must give outputs of the shape of its inputs, which are "
            f"added to them. Received: inputs of shape {tuple(input_shape)}, "
            f"outputs of shape {shape} from {block.moe.name!r}. Build it with "
            "the width of the inputs."
        )


def check_room(inputs: Tensor, places: Tensor, start: int) -> None:
    """Raise if inputs do not fit into a cache, as far as sizes are known.

    JAX and TensorFlow would silently write to other places.

    Args:
        inputs: Tensor of shape `(B, S, D)`.
        places: Tensor of shape `(B, L, ...)`, the keys of the cache.
        start: Int. Place of the first input.
    """
    batch, length, *_ = inputs.shape
    rows, room, *_ = places.shape
    if _known(batch, rows) and batch != rows:
        raise ValueError(
            "`cache` must have as many sequences as `inputs`. Received: "
            f"inputs of shape {tuple(inputs.shape)}, a cache of shape "
            f"{tuple(places.shape)}. Create it with empty_cache({batch}, ...)."
        )
    if start < 0 or _known(length, room) and start + length > room:
        raise ValueError(
            "`cache` must have a place for each token from `index` on. "
            f"Received: {length} tokens, index={start}, a cache of {room} "
            "places. Create it by `empty_cache` with a larger max_length."
        )


def _known(*sizes: Any) -> bool:
    """Return whether all sizes are numbers, neither None nor symbolic."""
    return all(isinstance(size, int) for size in sizes)
