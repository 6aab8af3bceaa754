"""One layer inside several others, which a `.keras` file preserves.

Keras writes a layer that stands inside another one into that one's config, so
two layers that hold the same part would come back with a copy each. Keras's
file format has a mark for that, `shared_object_id`, and `load_model` obeys
it; but Keras sets the mark only on later occurrences of a nested layer, so
that the first would be a copy. Here every occurrence bears it.

`from_config` and `clone_model` build each layer by itself. A part becomes a
copy there, and one warning tells so if two holders of one part are built.
"""

import itertools
import warnings
import weakref
from typing import Any

import keras

MARK = "shared_object_id"  # Keras's, which means something in files alone
PLACE = "shared_part"  # [number of the part, number of its holder]
_NUMBERS = itertools.count()
_PROBE = keras.initializers.Zeros()


class _Holders:
    """Who holds a part, numbered in the order of their construction.

    The numbers do not depend on which holders are still alive, so a config
    does not depend on the garbage collector.
    """

    def __init__(self, number: int | None = None, first: int = 0):
        self.is_copy = number is not None
        self.number = next(_NUMBERS) if number is None else number
        self.next = first
        self.places: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()

    def add(self, owner: keras.layers.Layer) -> int:
        """Return the number of a holder, a new one the first time."""
        if owner not in self.places:
            self.places[owner] = self.next
            self.next += 1
        return self.places[owner]


_HOLDERS: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
_BUILT: dict[int, set[int]] = {}  # by part: holders built from configs


def own(owner: keras.layers.Layer, *parts: keras.layers.Layer) -> None:
    """Note that `owner` holds `parts`, layers that it may share."""
    for part in parts:
        _HOLDERS.setdefault(part, _Holders()).add(owner)


def was_shared(part: keras.layers.Layer) -> bool:
    """Return whether more than one layer was ever given `part`."""
    holders = _HOLDERS.get(part)
    return holders is not None and (holders.is_copy or holders.next > 1)


def is_shared(part: keras.layers.Layer, layers: list) -> bool:
    """Return whether more than one of `layers` holds `part`."""
    holders = _HOLDERS.get(part)
    if holders is None:
        return False
    return len({id(x) for x in layers if x in holders.places}) > 1


def serialize_part(part: keras.layers.Layer, owner: keras.layers.Layer) -> dict:
    """Return the config of a layer, marked if it was shared."""
    config = keras.saving.serialize_keras_object(part)
    if not was_shared(part):
        return config
    if _is_saving():
        return {**config, MARK: id(part)}
    holders = _HOLDERS[part]
    return {**config, PLACE: [holders.number, holders.add(owner)]}


def deserialize_parts(config: dict, *names: str, custom_objects=None) -> dict:
    """Return a layer's config with some of its parts, or lists of parts, built.

    Warns once if another holder of one of the parts was built from its config
    since this one was built last: each has a copy of its own then.
    """
    copies: list[str] = []

    def build(value):
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
    """Return a config without the mark, to compare it by.

    While a model is saved or loaded, Keras marks whatever it serializes for
    the second time, default arguments too.
    """
    if not isinstance(config, dict):
        return config
    return {name: value for name, value in config.items() if name != MARK}


def _is_saving() -> bool:
    """Whether a `.keras` file is being written: marks have a meaning then."""
    keras.saving.serialize_keras_object(_PROBE)
    return MARK in keras.saving.serialize_keras_object(_PROBE)


def _is_unshared(part, number, place):
    """Whether this is the second holder that is built with a copy.

    The first keeps the part's number, so that its config is the same again.
    The second starts a number of its own: a copy of the copies shares nothing.
    """
    built = _BUILT.setdefault(number, set())
    if place in built:
        built.clear()
    built.add(place)
    if len(built) == 1:
        _HOLDERS[part] = _Holders(number, place)
    return len(built) == 2


def _warn(copies, owner):
    names = ", ".join(repr(name) for name in copies)
    warnings.warn(
        f"Layers that several blocks shared are copies now: {names} in "
        f"{owner!r}, which was built from a config. Sharing is restored only "
        "by `model.save` and `keras.saving.load_model`; or build the blocks "
        "with the same layer.",
        stacklevel=4,
    )
