"""Initialize experts from one trained feed-forward network.

D hidden_dim, F intermediate_dim, E experts.

Sparse upcycling (Komatsuzaki et al. 2022, "Sparse Upcycling: Training
Mixture-of-Experts from Dense Checkpoints", section 3): every expert is a copy
of the dense network, and only the router is newly initialized. Noise makes
copies that compute the same tokens diverge.
"""

import random
from collections.abc import Sequence
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_moe import checks
from keras_moe.types import Shape

Array: TypeAlias = np.ndarray[Any, Any]
PARTS = ("up", "down", "gate")
NAMES = [f"{part}_{kind}" for part in PARTS for kind in ("kernel", "bias")]


def hidden_dim_of(source: Any) -> int:
    """Return D of a source network; see `start_from`."""
    return int(_read(source)["up_kernel"].shape[0])


def check_bank(experts: keras.layers.Layer) -> None:
    """Raise if a block's experts are not an `Expert` but separate layers."""
    if hasattr(experts, "initialize_from"):
        return
    raise ValueError(
        "`experts` must be an `Expert` for the block to start from `source`. "
        f"Received: experts={experts!r}. Copy the weights into each layer with "
        "`for layer in block.experts.layers: "
        "layer.set_weights(source.get_weights())`, or build the block with "
        "`intermediate_dim` in place of `experts`."
    )


def start_from(
    experts: keras.layers.Layer,
    source: Any,
    noise_std: float = 0.0,
    seed: int | None = None,
) -> None:
    """Make every expert of a bank a copy of one network, plus noise.

    Args:
        experts: An `Expert`, which is built if it is not yet.
        source: A built `Expert(num_experts=1)`, or built `keras.layers.Dense`
            in the order `(up, down)` or `(up, down, gate)`.
        noise_std: Float, 0 or above. Standard deviation of the normal noise on
            each weight, in standard deviations of the weight. 0 by default;
            0.01 is a common start.
        seed: Int. Seed of the noise, which is the same on every backend.
            `None` (the default) takes one that `keras.utils.set_random_seed`
            determines.

    Raises:
        ValueError: If the source is not built or is of another kind, or if
            shapes, biases, gate, or activations differ.
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


def _read(source: Any) -> dict[str, Array]:
    """Return the float32 arrays of a network by their names in an `Expert`."""
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


def _stacked(experts: keras.layers.Layer) -> dict[str, keras.Variable]:
    """Return the existing weights of a bank by name."""
    weights = {name: getattr(experts, name) for name in NAMES}
    return {name: w for name, w in weights.items() if w is not None}


def _read_dense(layers: Sequence[Any]) -> dict[str, Array]:
    are_dense = all(isinstance(layer, keras.layers.Dense) for layer in layers)
    if not are_dense or len(layers) not in (2, 3):
        raise _wrong_source(layers)
    weights = {}
    for part, layer in zip(PARTS, layers, strict=False):
        weights[f"{part}_kernel"] = _array(layer.kernel)
        if layer.bias is not None:
            weights[f"{part}_bias"] = _array(layer.bias)
    return weights


def _array(variable: keras.Variable) -> Array:
    tensor = ops.stop_gradient(ops.convert_to_tensor(variable))
    array: Array = ops.convert_to_numpy(ops.cast(tensor, "float32"))
    return array


def _wrong_source(source: Any) -> ValueError:
    return ValueError(
        "`source` must be a built Expert with num_experts=1, or built "
        "keras.layers.Dense in the order (up, down) or (up, down, gate). "
        f"Received: source={source!r}. Call the layers once, or load the "
        "trained model, before taking them."
    )


def _check_shapes(
    expected: dict[str, Shape], received: dict[str, Shape]
) -> None:
    if expected != {n: tuple(shape) for n, shape in received.items()}:
        raise ValueError(
            "`source` must have the weights of one expert: the same widths, "
            "biases if the experts have biases, a gate if they are gated. "
            f"Received: source with {_sorted(received)}, experts with "
            f"{_sorted(expected)}. Build the experts with the source's "
            "`intermediate_dim`, `use_bias` and `gated`."
        )


def _sorted(shapes: dict[str, Shape]) -> dict[str, Shape]:
    return {name: tuple(shapes[name]) for name in sorted(shapes)}


def _check_activation(experts: keras.layers.Layer, source: Any) -> None:
    """Raise if the source has other activations than the experts.

    A linear `Dense` is accepted, since its activation may be a separate layer.
    """
    name = keras.activations.serialize
    own, linear = name(experts.activation), "linear"
    if not isinstance(source, (list, tuple)):
        pairs: list[tuple[Any, tuple[Any, ...]]] = [
            (name(source.activation), (own,))
        ]
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
