"""What the arguments of transformer blocks must be; see
`layer_checks.py`."""

import keras

from keras_moe import checks
from keras_moe.types import Shape, Tensor


def check_num_key_value_heads(value: int | None, num_heads: int) -> int | None:
    """Returns `value` where it is None or a divisor of `num_heads`."""
    if value is None:
        return None
    value = checks.check_positive_int("num_key_value_heads", value)
    if num_heads % value == 0:
        return value
    raise ValueError(
        "`num_key_value_heads` must divide `num_heads`: as many heads share "
        f"one key head. Received: num_key_value_heads={value}, num_heads="
        f"{num_heads}. Pass None for as many as there are heads."
    )


def check_width(shape: Shape, num_heads: int, rotary: bool = False) -> int:
    """Returns D of `(B, S, D)` where it can be cut into heads."""
    width = checks.check_input_shape(shape)
    if len(shape) != 3 or width % num_heads:
        raise ValueError(
            "`inputs` must be (batch, length, hidden_dim) with a hidden_dim"
            " that `num_heads` divides. Received: shape "
            f"{tuple(shape)}, num_heads={num_heads}. Change "
            "`num_heads` or the width of the inputs."
        )
    if rotary and width // num_heads % 2:
        raise ValueError(
            "`rotary` positions need heads of an even width, hidden_dim / "
            f"num_heads. Received: shape {tuple(shape)}, num_heads="
            f"{num_heads}. Change `num_heads`, or pass rotary=False."
        )
    return width


def check_moe(moe: object) -> keras.layers.Layer:
    """Return `moe` if it is a layer that a block can call."""
    return checks.check_is_a(
        "moe",
        moe,
        keras.layers.Layer,
        "a Keras layer, the feed-forward part",
        "Pass a MoEBlock, or Expert(F) for the dense twin.",
    )


def check_causal(moe: object) -> None:
    """Raises where a token's expert may depend on later tokens."""
    router = getattr(moe, "router", None)
    if not getattr(moe, "causal", True):
        level = getattr(moe, "level", None)
        raise ValueError(
            "`moe` must be a layer, with a router, that does not look at later "
            "tokens: the model would read what it has to predict. Received: "
            f"{type(moe).__name__} with router {type(router).__name__} and "
            f"level={level!r}, which do not claim it. Use Router and "
            "level='token'; a router of your own claims it by the attribute "
            "`causal = True`."
        )
    if router is None:
        return
    capacities = (moe.capacity_factor, moe.eval_capacity_factor)  # type: ignore[attr-defined]
    by_score = moe.priority == "score"  # type: ignore[attr-defined]
    if by_score and capacities != (None, None):
        raise ValueError(
            "`moe` must not have priority='score' and a capacity: later tokens "
            "push earlier ones out. Received: capacity_factor="
            f"{capacities[0]!r}, eval_capacity_factor={capacities[1]!r}. Use "
            "priority='position'."
        )


def check_cacheable(moe: object) -> None:
    """Raises where a token's expert depends on tokens before it."""
    router = getattr(moe, "router", None)
    if router is not None and router.reads_context:
        raise ValueError(
            "`cache` must be None where the router reads other tokens than the "
            f"one it routes. Received: a cache, {type(router).__name__}. Call "
            "the layer on whole sequences (generate(use_cache=False))."
        )
    if getattr(moe, "eval_capacity_factor", None) is not None:
        raise ValueError(
            "`cache` must be None where evaluation drops tokens: one token by "
            "itself would find other places free. Received: a cache, "
            f"eval_capacity_factor={moe.eval_capacity_factor!r}. Pass None."  # type: ignore[attr-defined]
        )


def check_moe_shape(block, input_shape: Shape) -> None:
    """Raise if a block's feed-forward part changes the shape of its inputs."""
    try:
        shape = block.moe.compute_output_shape(input_shape)
    except NotImplementedError:  # of a layer that leaves it to its spec
        inputs = keras.KerasTensor(input_shape, block.compute_dtype)
        shape = getattr(block.moe.compute_output_spec(inputs), "shape", None)
    if not checks.is_same_shape(shape, tuple(input_shape)):
        raise ValueError(
            "`moe` must give outputs of the shape of its inputs, which are "
            f"added to them. Received: inputs of shape {tuple(input_shape)}, "
            f"outputs of shape {shape} from {block.moe.name!r}. Give it the "
            "width of the inputs."
        )


def check_room(inputs: Tensor, places: Tensor, start: int) -> None:
    """Raises if inputs `(B, S, D)` do not fit into the places `(B, L, ...)` of
    a cache from `start` on, as far as the sizes are known.

    JAX and TensorFlow would write to other places, without an error.
    """
    batch, length, *_ = inputs.shape
    rows, room, *_ = places.shape
    if _known(batch, rows) and batch != rows:
        raise ValueError(
            "`cache` must have as many sequences as `inputs`. Received: "
            f"inputs of shape {tuple(inputs.shape)}, a cache of shape "
            f"{tuple(places.shape)}. Make it by empty_cache({batch}, ...)."
        )
    if start < 0 or _known(length, room) and start + length > room:
        raise ValueError(
            "`cache` must have a place for each token from `index` on. "
            f"Received: {length} tokens, index={start}, a cache of {room} "
            "places. Make it by `empty_cache` with a larger max_length."
        )


def _known(*sizes):
    """Whether sizes are numbers: neither unknown nor symbolic."""
    return all(isinstance(size, int) for size in sizes)
