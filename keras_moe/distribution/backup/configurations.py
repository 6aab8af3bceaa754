"""Describe a model's layers without what may differ between two runs.

A script that is started again builds the same model. But Keras numbers the
names of layers in each process, and a batch is smaller if more processes share
it. Initial values do not matter, because the values of the backup are loaded.
"""

import json
import warnings
from typing import Any

import keras

from keras_moe.model_surgery.find import layers_of

# Keys of configs that do not change what is trained.
IGNORED = {
    "build_config",
    "build_input_shape",
    "compile_config",
    "module",
    "remat",
    "shared_object_id",
    "shared_part",
}
OPAQUE = {"__lambda__", "SeedGenerator"}  # bytecode; a random seed


def layer_configs(model: keras.Model) -> list[list[Any]]:
    """Return `[class, config]` of each layer of a model, as plain JSON.

    The first entry is the model itself. A config does not repeat the configs of
    other layers. The config of a layer that cannot be saved is `None`.
    """
    names: dict[str, int] = {}
    return [
        [type(layer).__name__, _config_of(layer, names)]
        for layer in layers_of(model, keras.layers.Layer)
    ]


def difference(there: list[list[Any]], here: list[list[Any]]) -> str:
    """Describe the first difference of two results of `layer_configs`.

    Args:
        there: Configs of the saved model.
        here: Configs of the present model.

    Returns:
        A description, or `""` if there is no difference.
    """
    pairs = list(zip(there, here, strict=False))
    for (kind, config), (other, own) in [*pairs[1:], *pairs[:1]]:
        if kind != other:
            return f"{kind} there is {other} here"
        if None not in (config, own) and config != own:
            path, saved, mine = _first_unlike(config, own)
            return (
                f"`{'.'.join(path)}` of {kind} is {_short(saved)} there and "
                f"{_short(mine)} here"
            )
    if len(there) != len(here):
        return f"{len(there)} layers there are {len(here)} here"
    return ""


def _first_unlike(
    there: Any, here: Any, path: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], Any, Any]:
    """Return the path to the first parts that differ, and both parts."""
    parts: list[tuple[str, Any, Any]]
    if isinstance(there, dict) and isinstance(here, dict):
        keys = sorted({*there, *here})
        parts = [(key, there.get(key), here.get(key)) for key in keys]
    elif isinstance(there, list) and isinstance(here, list):
        both = enumerate(zip(there, here, strict=False))
        parts = [(str(i), saved, mine) for i, (saved, mine) in both]
    else:
        return path, there, here
    for key, saved, mine in parts:
        if saved != mine:
            return _first_unlike(saved, mine, (*path, key))
    return path, there, here


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _config_of(layer: keras.layers.Layer, names: dict[str, int]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Keras warns of lambdas
            config = keras.saving.serialize_keras_object(layer.get_config())
        config.pop("name", None)
        return json.loads(json.dumps(_lasting(config, names)))
    except Exception:  # whatever a user's `get_config` raises
        return None


def _lasting(value: Any, names: dict[str, int]) -> Any:
    """Return a part of a config, with layers' names replaced by numbers."""
    if isinstance(value, dict):
        return _lasting_dict(value, names)
    if isinstance(value, (list, tuple)):
        return [_lasting(part, names) for part in value]
    return value


def _lasting_dict(value: dict[str, Any], names: dict[str, int]) -> Any:
    if value.get("class_name") in OPAQUE:
        return value["class_name"]
    if "keras_history" in value:  # a tensor of a functional model
        return _numbered(value["keras_history"], names)
    value = {k: v for k, v in value.items() if not _is_ignored(k)}
    config = value.get("config")
    if isinstance(config, dict):
        if "trainable" in config or "batch_shape" in config:
            del value["config"]  # a layer, which has its own entry
        elif "inbound_nodes" in value:  # an operation
            value["config"] = {k: config[k] for k in config if k != "name"}
    found: dict[str, Any] = {}
    for key, part in sorted(value.items()):
        if key in ("input_layers", "output_layers"):
            found[key] = _numbered(part, names)
        elif key == "name" and "inbound_nodes" in value:
            found[key] = _numbered(part, names)
        elif key == "batch_shape":
            found[key] = list(part[1:])
        else:
            found[key] = _lasting(part, names)
    return found


def _is_ignored(key: str) -> bool:
    return key in IGNORED or str(key).endswith("initializer")


def _numbered(value: Any, names: dict[str, int]) -> Any:
    if isinstance(value, str):
        return names.setdefault(value, len(names))
    if isinstance(value, dict):
        return {key: _numbered(part, names) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_numbered(part, names) for part in value]
    return value
