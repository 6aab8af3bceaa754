"""Preserve in `.keras` files that several layers hold the same layer.

Keras writes a nested layer into the config of the layer that holds it, so two
layers that hold the same part would each be loaded with a copy. Keras's file
format has a mark for this case, `shared_object_id`, which `load_model` obeys.
But Keras sets the mark only on later occurrences of a nested layer, so the
first would be a copy. This module marks every occurrence.

`from_config` and `clone_model` build each layer separately, so a shared part
becomes a copy. If two holders of one part are built, there is one warning.
"""

import itertools
import warnings
import weakref
from collections.abc import Iterable
from typing import Any

import keras

MARK = "shared_object_id"  # Keras's mark, which is used only in files
PLACE = "shared_part"  # [number of the part, number of its holder]
_NUMBERS = itertools.count()
_PROBE = keras.initializers.Zeros()


class _Holders:
    """Numbers the layers that hold a part, in the order of construction.

    The numbers do not depend on which holders are still alive, so a config
    does not depend on the garbage collector.
    """

    def __init__(self, number: int | None = None, first: int = 0):
        self.is_copy = number is not None
        self.number = next(_NUMBERS) if number is None else number
        self.next = first
        self.places: weakref.WeakKeyDictionary[keras.layers.Layer, int] = (
            weakref.WeakKeyDictionary()
        )

    def add(self, owner: keras.layers.Layer) -> int:
        """Return the number of a holder, and add it if it is new."""
        if owner not in self.places:
            self.places[owner] = self.next
            self.next += 1
        return self.places[owner]


_HOLDERS: weakref.WeakKeyDictionary[keras.layers.Layer, _Holders] = (
    weakref.WeakKeyDictionary()
)
_BUILT: dict[int, set[int]] = {}  # by part: holders built from configs


def own(owner: keras.layers.Layer, *parts: keras.layers.Layer) -> None:
    """Note that `owner` holds `parts`, layers that it may share."""
    for part in parts:
        _HOLDERS.setdefault(part, _Holders()).add(owner)


def was_shared(part: keras.layers.Layer) -> bool:
    """Return whether more than one layer was ever given `part`."""
    holders = _HOLDERS.get(part)
    return holders is not None and (holders.is_copy or holders.next > 1)


def is_shared(
    part: keras.layers.Layer, layers: Iterable[keras.layers.Layer]
) -> bool:
    """Return whether more than one of `layers` holds `part`."""
    holders = _HOLDERS.get(part)
    if holders is None:
        return False
    return len({id(x) for x in layers if x in holders.places}) > 1


def serialize_part(
    part: keras.layers.Layer, owner: keras.layers.Layer
) -> dict[str, Any]:
    """Return the config of a layer, marked if it was shared."""
    config: dict[str, Any] = keras.saving.serialize_keras_object(part)
    if not was_shared(part):
        return config
    if _is_saving():
        return {**config, MARK: id(part)}
    holders = _HOLDERS[part]
    return {**config, PLACE: [holders.number, holders.add(owner)]}


def deserialize_parts(
    config: dict[str, Any],
    *names: str,
    custom_objects: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return a layer's config with some of its parts built.

    Warns if another holder of one of the parts was also built from its config:
    each holder then has its own copy.

    Args:
        config: Dict. Config of the layer.
        *names: Names of the entries to build, each a layer or a list of
            layers.
        custom_objects: Dict from names to classes for Keras, or None.
    """
    copies: list[str] = []

    def build(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return [build(x) for x in value]
        part = keras.saving.deserialize_keras_object(value, custom_objects)
        place = value.get(PLACE) if isinstance(value, dict) else None
        if place and _is_unshared(part, *place):
            copies.append(part.name)
        return part

    parts = {name: build(config[name]) for name in names if name in config}
    if copies:
        _warn(copies, config.get("name"))
    return {**config, **parts}


def unmarked(config: Any) -> Any:
    """Return a config without the mark, so that configs can be compared.

    While a model is saved or loaded, Keras marks every object that it
    serializes for the second time, also default arguments.
    """
    if not isinstance(config, dict):
        return config
    return {name: value for name, value in config.items() if name != MARK}


def _is_saving() -> bool:
    """Return whether a `.keras` file is being written, where marks are used."""
    keras.saving.serialize_keras_object(_PROBE)
    return MARK in keras.saving.serialize_keras_object(_PROBE)


def _is_unshared(part: keras.layers.Layer, number: int, place: int) -> bool:
    """Return whether this is the second holder that is built with a copy.

    The copy of the first holder keeps the number of the part, so that its
    config stays the same. Copies of further holders get new numbers.
    """
    built = _BUILT.setdefault(number, set())
    if place in built:
        built.clear()
    built.add(place)
    if len(built) == 1:
        _HOLDERS[part] = _Holders(number, place)
    return len(built) == 2


def _warn(copies: list[str], owner: str | None) -> None:
    names = ", ".join(repr(name) for name in copies)
    warnings.warn(
        f"Layers that several blocks shared are copies now: {names} in "
        f"{owner!r}, which was built from a config. Only `model.save` and "
        "`keras.saving.load_model` preserve sharing; or build the blocks with "
        "the same layer.",
        stacklevel=4,
    )
