"""Build a model again from its config, with some of its layers changed.

Pruning, merging, and the conversion to a dense model use it. While a model is
serialized, the layers that are to change give another config, so that the
change takes place wherever the layer is and whatever class holds it. Weights
then move from layer to layer, side by side down both trees.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_moe import _keras

REPLACEMENT = "keras_moe_replacement"
Config: TypeAlias = dict[str, Any]
Edit: TypeAlias = Callable[[Config], Config]
Transfer: TypeAlias = Callable[[keras.layers.Layer, keras.layers.Layer], None]
Layers: TypeAlias = list[keras.layers.Layer]


class Changes:
    """Collect the changes to a model that `rebuild` makes.

    Attributes:
        layers: Dict from the id of a layer with an edit to the layer.
        edits: Dict from that id to a function from the layer's config to
            another config.
        transfers: Dict from the id of a layer to a function that fills the
            new layer in its place, and all layers below that one.
    """

    def __init__(self) -> None:
        self.layers: dict[int, keras.layers.Layer] = {}
        self.edits: dict[int, Edit] = {}
        self.transfers: dict[int, Transfer] = {}

    def edit(self, layer: keras.layers.Layer, edit: Edit) -> None:
        """Change the config of a layer."""
        self.layers[id(layer)] = layer
        self.edits[id(layer)] = edit

    def transfer(self, layer: keras.layers.Layer, transfer: Transfer) -> None:
        """Fill the new layer in the place of a layer by a function."""
        self.transfers[id(layer)] = transfer


def replacement(layer: keras.layers.Layer) -> Config:
    """Return the result of an edit that puts another layer in the place."""
    config = keras.saving.serialize_keras_object(layer)
    config.pop("build_config", None)
    return {REPLACEMENT: config}


def uncompiled_config(model: keras.layers.Layer) -> Config:
    """Return a model's config without how the model was compiled.

    A `.keras` file with it can be loaded on another backend, and without the
    losses that the model was trained with.
    """
    config: Config = keras.saving.serialize_keras_object(model)
    config.pop("compile_config", None)
    return config


def rebuild(model: keras.Model, changes: Changes) -> keras.Model:
    """Return a new model of the same class, changed, with the weights.

    It is not compiled, and its random states are new ones. Functions of a user
    must be registered with Keras, as for saving.

    Args:
        model: Built model. It does not change.
        changes: Layers that differ in the new model.

    Raises:
        ValueError: If the new model is not built by its config alone, or does
            not have the layers and weights of the old one.
    """
    with _edited(changes):
        config = keras.saving.serialize_keras_object(model)
    new = _built(model, _without_traces(config))
    if not new.built:
        raise ValueError(
            "`model` must be built by its config: a Functional or Sequential "
            "model with an Input, or a subclass with `build` or "
            f"`build_from_config`. Received: {type(model).__name__} "
            f"{model.name!r}, whose copy has no weights. Wrap it: "
            "`x = keras.Input(...); keras.Model(x, model(x))`."
        )
    move_weights(model, new, changes.transfers)
    return new


def _built(model: keras.Model, config: Config) -> keras.Model:
    """Return the model of a config; it may hold any class of the old model."""
    classes = {type(layer) for layer in _keras.every_layer_of(model)}
    custom = {keras.saving.get_registered_name(c): c for c in classes}
    try:
        return keras.saving.deserialize_keras_object(
            config, custom_objects=custom, safe_mode=False
        )
    except TypeError as error:
        reason = str(error).split("Exception encountered:")[-1].strip()
        raise ValueError(
            "`model` must be built by its config, as for saving and loading. "
            f"Received: {type(model).__name__} {model.name!r}, which failed "
            f"with: {reason[:300]} ... Write `get_config` for its layers and "
            "register them and their functions with "
            "`keras.saving.register_keras_serializable`."
        ) from error


@contextlib.contextmanager
def _edited(changes: Changes) -> Iterator[None]:
    """Let the layers to change give their edited config inside."""
    for key, layer in changes.layers.items():
        layer.__dict__["get_config"] = _edited_config(layer, changes.edits[key])
    try:
        yield
    finally:
        for layer in changes.layers.values():
            del layer.__dict__["get_config"]


def _edited_config(layer: keras.layers.Layer, edit: Edit) -> Callable[[], Any]:
    return lambda: edit(type(layer).get_config(layer))


def _without_traces(config: Any) -> Any:
    """Put replacements in their place, and leave compilation out."""
    if isinstance(config, (list, tuple)):
        return type(config)(_without_traces(x) for x in config)
    if not isinstance(config, dict):
        return config
    config = {k: v for k, v in config.items() if k != "compile_config"}
    inner = config.get("config")
    if isinstance(inner, dict) and REPLACEMENT in inner:
        config |= inner[REPLACEMENT]
    return {name: _without_traces(value) for name, value in config.items()}


def move_weights(
    old: keras.layers.Layer,
    new: keras.layers.Layer,
    transfers: dict[int, Transfer] | None = None,
) -> None:
    """Copy the weights of a layer and of all layers below it.

    Args:
        old: Built layer to copy from.
        new: Built layer of the same class to copy to.
        transfers: Dict from the id of an old layer to the function that fills
            the new layer in its place. `None` (the default) means none.
    """
    _move(old, new, transfers or {}, set())


def _move(
    old: keras.layers.Layer,
    new: keras.layers.Layer,
    transfers: dict[int, Transfer],
    done: set[int],
) -> None:
    if id(old) in done:
        return
    done.add(id(old))
    if id(old) in transfers:
        transfers[id(old)](old, new)
        return
    children = _keras.layers_right_below(old), _keras.layers_right_below(new)
    weights = own_weights(old), own_weights(new)
    alike = isinstance(old, type(new)) and all(
        len(one) == len(other) for one, other in (children, weights)
    )
    if not alike:
        raise ValueError(
            "`model` must have, when it is built from its config, the layers "
            f"that it has. Received: {old.name!r} with "
            f"{[x.name for x in children[0]]}, and its copy {new.name!r} with "
            f"{[x.name for x in children[1]]}, {len(weights[0])} and "
            f"{len(weights[1])} weights. Create layers in `__init__`, weights "
            "in `build`, and let a model that holds layers be built from its "
            "config, as for saving and loading."
        )
    for one, other in zip(*weights, strict=True):
        assign(other, to_array(one))
    for one, other in _matched(*children):
        _move(one, other, transfers, done)


def _matched(old: Layers, new: Layers) -> list[tuple[Any, Any]]:
    """Return pairs of layers by name if names are unique, else by order."""
    by_name = {x.name: x for x in new}
    names = [x.name for x in old]
    if len(by_name) == len(new) and set(names) == set(by_name):
        return [(x, by_name[x.name]) for x in old]
    return list(zip(old, new, strict=True))


def own_weights(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the weights of a layer without those of the layers below it."""
    layers = _keras.layers_right_below(layer)
    below = {id(w) for x in layers for w in x.weights}
    return [w for w in layer.weights if id(w) not in below]


def assign(weight: keras.Variable, value: np.ndarray) -> None:
    """Set a weight, or raise an error that names it if shapes differ."""
    if tuple(weight.shape) != value.shape:
        raise ValueError(
            "A model's weights must follow from its config. Received: "
            f"{weight.path} of shape {tuple(weight.shape)} for values of shape "
            f"{value.shape}. A class that builds a MoEBlock by itself must "
            "take it as an argument and give it in `get_config`; a router of "
            "your own names its weights of experts in `expert_axes`."
        )
    weight.assign(value)


def to_array(weight: Any) -> np.ndarray:
    """Return a weight or tensor as an array; half precision as float32."""
    tensor = ops.stop_gradient(ops.convert_to_tensor(weight))
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype in ("bfloat16", "float16"):
        tensor = ops.cast(tensor, "float32")
    return np.array(ops.convert_to_numpy(tensor))
