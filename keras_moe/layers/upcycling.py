"""Experts that start from one trained feed-forward network.

D hidden_dim, F intermediate_dim, E experts.

Sparse upcycling (Komatsuzaki et al. 2022, "Sparse Upcycling: Training
Mixture-of-Experts from Dense Checkpoints", section 3): every expert is a copy
of the dense network, and only the router starts anew. Noise lets copies that
see the same tokens part.
"""

import random

import keras
import numpy as np
from keras import ops

from keras_moe import checks
from keras_moe.types import Shape

PARTS = ("up", "down", "gate")
NAMES = [f"{part}_{kind}" for part in PARTS for kind in ("kernel", "bias")]


def hidden_dim_of(source) -> int:
    """Returns D of a network that experts start from.

    Args:
        source: see `start_from`.
    """
    return int(_read(source)["up_kernel"].shape[0])


def check_bank(experts) -> None:
    """Checks that a block's experts are a bank that can start from others.

    Raises:
        ValueError: If they are layers of their own.
    """
    if hasattr(experts, "initialize_from"):
        return
    raise ValueError(
        "`experts` must be an `Expert` for the block to start from `source`. "
        f"Received: experts={experts!r}. Give each layer the weights of yours: "
        "`for layer in block.experts.layers: "
        "layer.set_weights(source.get_weights())`, or build the block with "
        "`intermediate_dim` in place of `experts`."
    )


def start_from(
    experts, source, noise_std: float = 0.0, seed: int | None = None
) -> None:
    """Makes every expert of a bank a copy of one network, plus noise.

    Args:
        experts: an `Expert`; it is built where it is not yet.
        source: a built `Expert(num_experts=1)`, or built `keras.layers.Dense`
            in the order `(up, down)` or `(up, down, gate)`.
        noise_std: 0 or above, standard deviation of the normal noise on each
            weight, in standard deviations of that weight. 0.01 is a start.
        seed: int, for the noise; the same on every backend. None takes one
            that `keras.utils.set_random_seed` decides.

    Raises:
        ValueError: for a source that is not built or of another kind, and
            where shapes, biases, gating or activations differ.
    """
    noise_std = checks.check_weight("noise_std", noise_std)
    seed = checks.check_seed(seed)
    weights = _read(source)
    _check_activation(experts, source)
    if not experts.built:
        experts.build((None, weights["up_kernel"].shape[0]))
    _check_shapes(
        {name: tuple(w.shape[1:]) for name, w in _stacked(experts).items()},
        {name: w.shape for name, w in weights.items()},
    )
    if seed is None:
        seed = random.getrandbits(32)
    for place, (name, weight) in enumerate(weights.items()):
        draw = np.random.default_rng([seed, place])
        shape = (experts.num_experts, *weight.shape)
        noise = draw.standard_normal(shape, "float32")
        noise *= noise_std * weight.std()
        getattr(experts, name).assign(weight + noise)


def _read(source):
    """The float32 arrays of one network by their names in an `Expert`."""
    is_bank = hasattr(source, "num_experts") and hasattr(source, "gated")
    layers = [source] if is_bank else source
    if not isinstance(layers, (list, tuple)) or not all(
        getattr(layer, "built", False) for layer in layers
    ):
        raise _wrong_source(source)
    if not is_bank:
        return _read_dense(layers)
    if source.num_experts != 1:
        raise _wrong_source(source)
    return {name: _array(w)[0] for name, w in _stacked(source).items()}


def _stacked(experts):
    """The weights of a bank that it has, by name."""
    weights = {name: getattr(experts, name) for name in NAMES}
    return {name: w for name, w in weights.items() if w is not None}


def _read_dense(layers):
    are_dense = all(isinstance(layer, keras.layers.Dense) for layer in layers)
    if not are_dense or len(layers) not in (2, 3):
        raise _wrong_source(layers)
    weights = {}
    for part, layer in zip(PARTS, layers, strict=False):
        weights[f"{part}_kernel"] = _array(layer.kernel)
        if layer.bias is not None:
            weights[f"{part}_bias"] = _array(layer.bias)
    return weights


def _array(variable) -> np.ndarray:
    tensor = ops.stop_gradient(ops.convert_to_tensor(variable))
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def _wrong_source(source):
    return ValueError(
        "`source` must be a built Expert with num_experts=1, or built "
        "keras.layers.Dense in the order (up, down) or (up, down, gate). "
        f"Received: source={source!r}. Call the layers once, or load the "
        "trained model, before taking them."
    )


def _check_shapes(expected: dict[str, Shape], received: dict[str, Shape]):
    if expected != {n: tuple(shape) for n, shape in received.items()}:
        raise ValueError(
            "`source` must have the weights of one of the experts: the same "
            "widths, biases where they have biases, a gate where they are "
            f"gated. Received: source with {_sorted(received)}, experts with "
            f"{_sorted(expected)}. Build the experts with the source's "
            "`intermediate_dim`, `use_bias` and `gated`."
        )


def _sorted(shapes):
    return {name: tuple(shapes[name]) for name in sorted(shapes)}


def _check_activation(experts, source):
    """A linear `Dense` may have its activation behind it, as a layer."""
    name = keras.activations.serialize
    own, linear = name(experts.activation), "linear"
    if not isinstance(source, (list, tuple)):
        pairs: list[tuple] = [(name(source.activation), (own,))]
    else:
        found = [name(layer.activation) for layer in source]
        activated = 2 if len(source) == 3 else 0
        pairs = [
            (a, (own, linear) if place == activated else (linear,))
            for place, a in enumerate(found)
        ]
    for received, allowed in pairs:
        if received not in allowed:
            raise ValueError(
                "`source` must have the experts' activation between its "
                f"matrices and none elsewhere. Received: source with "
                f"{[a for a, _ in pairs]}, experts with activation={own!r}. "
                "Build the experts with the source's `activation`."
            )
