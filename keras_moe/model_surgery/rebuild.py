"""A model again from its config, with some of its layers changed.

Pruning, merging and the way to a dense model stand on this. While a model is
serialised, the layers that are to change give another config, so that the
change lands at its place however deep the layer is and whatever class holds
it. Weights then move from layer to layer, side by side down both trees.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_moe import _keras

REPLACEMENT = "keras_moe_replacement"
Edit = Callable[[dict], dict]
Transfer = Callable[[keras.layers.Layer, keras.layers.Layer], None]


class Changes:
    """What is to be different in the new model.

    `edits`: by layer, a function from its config to another one.
    `transfers`: by layer, a function that fills the new layer in its place;
        layers below are its matter then, too.
    """

    def __init__(self):
        self.layers: dict[int, keras.layers.Layer] = {}
        self.edits: dict[int, Edit] = {}
        self.transfers: dict[int, Transfer] = {}

    def edit(self, layer: keras.layers.Layer, edit: Edit) -> None:
        """Changes a layer's config."""
        self.layers[id(layer)] = layer
        self.edits[id(layer)] = edit

    def transfer(self, layer: keras.layers.Layer, transfer: Transfer) -> None:
        """Fills what stands in the place of a layer."""
        self.transfers[id(layer)] = transfer


def replacement(layer: keras.layers.Layer) -> dict:
    """Returns what an edit returns where a layer gives way to another."""
    config = keras.saving.serialize_keras_object(layer)
    config.pop("build_config", None)
    return {REPLACEMENT: config}


def rebuild(model: keras.Model, changes: Changes) -> keras.Model:
    """Returns a new model of the same class, changed, with the weights.

    It is not compiled, and random states start anew. Functions of a user must
    be registered with Keras, as for saving.

    Args:
        model: a built model; it stays as it is.
        changes: what is to differ.

    Raises:
        ValueError: where the new model is not built by its config alone, or
            does not have the old one's layers.
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


def _built(model, config):
    """The model of a config; it may hold any class of the old model's."""
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
def _edited(changes):
    """Inside, the layers to change give another config."""
    for key, layer in changes.layers.items():
        layer.__dict__["get_config"] = _edited_config(layer, changes.edits[key])
    try:
        yield
    finally:
        for layer in changes.layers.values():
            del layer.__dict__["get_config"]


def _edited_config(layer, edit):
    return lambda: edit(type(layer).get_config(layer))


def _without_traces(config: Any):
    """Puts replacements in their place and leaves compilation out."""
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
    """Copies the weights of a layer and of all below it.

    Args:
        old, new: layers of one class, built.
        transfers: by the id of an old layer, what to do instead.
    """
    _move(old, new, transfers or {}, set())


def _move(old, new, transfers, done):
    if id(old) in done:
        return
    done.add(id(old))
    if id(old) in transfers:
        transfers[id(old)](old, new)
        return
    children = _children(old), _children(new)
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


def _children(layer):
    """The layers right below, each once."""
    return _keras.layers_right_below(layer)


def _matched(old, new):
    """Pairs by name where names tell, else by order."""
    by_name = {x.name: x for x in new}
    names = [x.name for x in old]
    if len(by_name) == len(new) and set(names) == set(by_name):
        return [(x, by_name[x.name]) for x in old]
    return list(zip(old, new, strict=True))


def own_weights(layer: keras.layers.Layer) -> list:
    """Returns a layer's weights without those of the layers below it."""
    below = {id(w) for x in _children(layer) for w in x.weights}
    return [w for w in layer.weights if id(w) not in below]


def assign(weight, value: np.ndarray) -> None:
    """Sets a weight; says whose it is where the shape is another."""
    if tuple(weight.shape) != value.shape:
        raise ValueError(
            "A model's weights must follow from its config. Received: "
            f"{weight.path} of shape {tuple(weight.shape)} for values of shape "
            f"{value.shape}. A class that builds a MoEBlock by itself must "
            "take it as an argument and give it in `get_config`; a router of "
            "your own names its weights of experts in `expert_axes`."
        )
    weight.assign(value)


def to_array(weight) -> np.ndarray:
    """Returns a weight or tensor as an array; half precision as float32."""
    tensor = ops.stop_gradient(ops.convert_to_tensor(weight))
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    if dtype in ("bfloat16", "float16"):
        tensor = ops.cast(tensor, "float32")
    return np.array(ops.convert_to_numpy(tensor))
