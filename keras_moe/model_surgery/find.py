"""Find the mixture-of-experts parts of a model, however deep they are."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_moe import _keras, checks
from keras_moe.layers.mixture import Mixture
from keras_moe.layers.routers.base_router import BaseRouter

_MODEL = ("a Keras model", "Pass the model, not its name or its layers.")


def find_blocks(model: keras.Model) -> list[Mixture]:
    """Return every `MoEBlock` and `MixtureOfModels` inside a model.

    Args:
        model: Keras model or layer. A subclassed model has its layers once it
            was called.

    Returns:
        A list, in the order in which the model holds them.

    Raises:
        ValueError: If there is none, or if `model` is no Keras layer.

    Example:

    ```python
    inputs = keras.Input((5, 16))
    outputs = keras_moe.MoEBlock(4, intermediate_dim=32)(inputs)
    (block,) = keras_moe.find_blocks(keras.Model(inputs, outputs))
    block.router.disable_experts([3])
    ```
    """
    return _find(model, Mixture, "a MoEBlock or MixtureOfModels")


def blocks_of(model: keras.Model) -> list[Mixture]:
    """Return what `find_blocks` does, or an empty list if there is none."""
    return layers_of(model, Mixture)


def paths_of(layers: Sequence[keras.layers.Layer]) -> list[str]:
    """Return a distinct path for each layer.

    It is the layer's own `path`. If several layers share one, as in a model of
    models, that of the second ends in `_1`, that of the third in `_2`.

    Args:
        layers: Layers of a model, in the order in which the model holds them.
    """
    paths: list[str] = []
    for layer in layers:
        path = name = layer.path or layer.name
        number = 0
        while path in paths:
            number += 1
            path = f"{name}_{number}"
        paths.append(path)
    return paths


def find_routers(model: keras.Model) -> list[BaseRouter]:
    """Return every router inside a model, those of its blocks included.

    Raises:
        ValueError: If there is none, or if `model` is no Keras layer.
    """
    return _find(model, BaseRouter, "a router")


def layers_of(model: keras.layers.Layer, kind: type) -> list[Any]:
    """Return every layer of a class in a model or layer, itself included."""
    checks.check_is_a("model", model, keras.layers.Layer, *_MODEL)
    return [x for x in _keras.every_layer_of(model) if isinstance(x, kind)]


def _find(model: keras.Model, kind: type, name: str) -> list[Any]:
    found = layers_of(model, kind)
    if found:
        return found
    raise ValueError(
        f"`model` must contain {name} for its routing to be seen or changed. "
        f"Received: model {model.name!r} without one. Add one, or call a "
        "subclassed model once so that its layers are there."
    )
