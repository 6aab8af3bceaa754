"""Keep frozen layers frozen when they are saved, loaded, or cloned.

Keras restores `trainable=False` before a layer has its parts: the layer is
frozen, but the parts that it creates afterwards are trained. Here each part
takes the flag of the layer that holds it, and a config also records the parts
whose flag differs.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import keras

from keras_moe import _keras

HOLDERS = (keras.layers.Layer, list, tuple, dict)
_TRAINABLE: Any = keras.layers.Layer.trainable


class TrainableParts:
    """Mixin of all layers and models of the package that hold other layers.

    A part that is attached to a frozen layer becomes frozen. A flag that
    differs from that of the holding layer is saved in the config.

    Args:
        trainable_parts: Dict from the path of a part below this layer, such
            as `"experts/up"`, to its `trainable`. Only saved configs have it.
        *args, **kwargs: Arguments of the next class.
    """

    # Pairs of path and flag, of parts that do not exist yet.
    _flags: frozenset[tuple[str, bool]] = frozenset()
    _settled: frozenset[int] = frozenset()  # ids of parts with a final flag

    def __init__(
        self,
        *args: Any,
        trainable_parts: Mapping[str, bool] | None = None,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.set_trainable_parts(trainable_parts)

    def __setattr__(self, name: str, value: Any) -> None:
        """Freeze layers that are attached to a frozen layer."""
        built = name == "built" and value and not self.__dict__.get("built")
        super().__setattr__(name, value)
        if built:
            self._settle_parts()
            self._flags = frozenset()  # the remaining flags have no part
        elif isinstance(value, HOLDERS) and not getattr(
            self, "trainable", True
        ):
            self._settle_parts()

    @property
    def trainable(self) -> bool:
        """Whether the layer is trained; setting it sets all parts."""
        flag: bool = _TRAINABLE.fget(self)
        return flag

    @trainable.setter
    def trainable(self, value: bool) -> None:
        _TRAINABLE.fset(self, value)
        self._flags = frozenset()
        self._settled = frozenset(id(part) for _, part, _ in parts_of(self))

    def set_trainable_parts(self, flags: Mapping[str, bool] | None) -> None:
        """Set the flags of parts, including those that `build` will create.

        Args:
            flags: Dict from path to `trainable`, or None.

        Raises:
            ValueError: If `flags` is neither such a dict nor None.
        """
        if flags is not None:
            _check_flags(flags)
        if flags:
            self._flags = frozenset(flags.items())
            self._settled = frozenset()
        if flags or not self.trainable:
            self._settle_parts()

    def trainable_config(self) -> dict[str, dict[str, bool]]:
        """Return `{"trainable_parts": ...}`, or nothing if no flag differs."""
        flags = dict(sorted(self._flags)) | {
            path: part.trainable
            for path, part, holder in parts_of(self)
            if part.trainable != holder.trainable
        }
        return {"trainable_parts": flags} if flags else {}

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        return {**super().get_config(), **self.trainable_config()}  # type: ignore[misc]

    def _settle_parts(self) -> None:
        """Set the flag of each new part."""
        flags, settled = dict(self._flags), set(self._settled)
        for path, part, holder in parts_of(self):
            if id(part) in settled:
                continue
            settled.add(id(part))
            flag = flags.pop(path, part.trainable and holder.trainable)
            if part.trainable != flag:
                part.trainable = flag
        self._flags = frozenset(flags.items())
        self._settled = frozenset(settled)


def parts_of(
    layer: Any, prefix: str = "", known: set[int] | None = None
) -> Iterator[tuple[str, keras.layers.Layer, keras.layers.Layer]]:
    """Yield `(path, part, holder)` for each layer inside a layer.

    Each part is yielded once, before its own parts. If two parts of one layer
    have the same name, the second has the path `name:1`.
    """
    known = {id(layer)} if known is None else known
    names: dict[str, int] = {}
    for part in _keras.layers_right_below(layer):
        number = names.setdefault(part.name, 0)
        names[part.name] += 1
        if id(part) in known:
            continue
        known.add(id(part))
        path = prefix + part.name + (f":{number}" if number else "")
        yield path, part, layer
        yield from parts_of(part, f"{path}/", known)


def _check_flags(flags: Any) -> None:
    """Raise unless this is a dict from paths to booleans."""
    if isinstance(flags, Mapping) and all(
        isinstance(path, str) and isinstance(flag, bool)
        for path, flag in flags.items()
    ):
        return
    raise ValueError(
        "`trainable_parts` must be a dict from paths of layers inside this one "
        f"to booleans. Received: {flags!r}. Take it from `get_config`."
    )
