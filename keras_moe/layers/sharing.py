"""One layer inside several others, which a saved model remembers.

Keras writes a layer that stands inside another one into that one's config.
Two layers that hold the same part would come back with a copy each. Keras's
format has a mark for that, `shared_object_id`, and `load_model` obeys it; but
it sets the mark on a later occurrence alone where the part is nested, so that
the first would be a copy. Here every occurrence bears it.
"""

import weakref
from typing import Any

import keras

MARK = "shared_object_id"
_owners: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()


def own(owner: keras.layers.Layer, *parts: keras.layers.Layer) -> None:
    """Notes that `owner` holds `parts`, layers that it may share."""
    for part in parts:
        _owners.setdefault(part, weakref.WeakSet()).add(owner)


def is_shared(part: keras.layers.Layer) -> bool:
    """Whether more than one living layer holds `part`."""
    return len(_owners.get(part, ())) > 1


def serialize_part(part: keras.layers.Layer) -> dict:
    """Returns the config of a layer, marked where it is shared."""
    config = keras.saving.serialize_keras_object(part)
    return {**config, MARK: id(part)} if is_shared(part) else config


def unmarked(config: Any) -> Any:
    """Returns a config without the mark, to compare it by.

    While a model is saved or loaded, Keras marks whatever it serialises for
    the second time, default arguments too.
    """
    if not isinstance(config, dict):
        return config
    return {name: value for name, value in config.items() if name != MARK}


def deserialize_part(config: Any) -> Any:
    """Returns the layer of a config; the same one for the same mark.

    Raises:
        ValueError: for a shared layer outside of `keras.saving.load_model`
            (`from_config`, `clone_model`, `model_from_json`), where nobody
            remembers the first occurrence and a copy would come of each.
    """
    part = keras.saving.deserialize_keras_object(config)
    if not isinstance(config, dict) or MARK not in config:
        return part
    if keras.saving.deserialize_keras_object(config) is part:
        return part
    raise ValueError(
        "A layer that several blocks share must be loaded with all of them, by "
        f"`keras.saving.load_model`. Received: the config of {part.name!r}, "
        "which would become a copy of its own here. Save the model and load "
        "it, instead of from_config or clone_model."
    )
