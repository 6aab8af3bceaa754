"""Keys of what functions have captured.

A compiled program holds as constants whatever its function did not take as an
argument: numbers in closures, attributes of layers, dtype policies. Two
functions may share a program only if all of these are equal.
"""

import functools
import types
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import keras
import numpy as np

from keras_moe.types import GatedUnit

SCALARS = (bool, int, float, complex, str, bytes, type(None), type(Ellipsis))
CONTAINERS = (list, tuple, set, frozenset, dict)
# No program depends on the state of these packages' modules, except for what
# `forced.context` returns.
LIBRARIES = {"jax", "keras", "keras_hub", "keras_moe", "numpy", "tensorflow"}
# Attributes that `compile`, `fit`, and `predict` set on a model. They are left
# out of its key, since `generate` may run in a callback.
OF_TRAINING = {
    "history",
    "make_predict_function",
    "make_test_function",
    "make_train_function",
    "optimizer",
    "stop_evaluating",
    "stop_predicting",
    "stop_training",
}


class Same:
    """A value that is compared by identity.

    It is kept alive, so that no other object gets its id.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def captured_by(
    function: Callable[..., Any],
) -> tuple[Hashable, list[keras.Variable]]:
    """Return a key of what a function captured, and the variables in it.

    Numbers, strings, arrays, and containers are compared by value; functions
    by their code, closure, defaults, and the globals that they name; layers by
    identity, dtype policy, and attributes; other objects by identity. Objects
    that the function holds directly are also compared by their attributes.

    Args:
        function: Any callable.

    Returns:
        A hashable key, which keeps alive what it compares by identity, and
        every `keras.Variable` that was found.
    """
    walk = _Walk()
    key = walk.key_of(function)
    return key, list({id(v): v for v in walk.variables}.values())


class Keyed:
    """A function that equals every function with the same captures."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.key, _ = captured_by(function)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keyed) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class KeyedUnit(Keyed, GatedUnit):
    """A `GatedUnit` that equals every unit with the same captures."""


def keyed(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that can be the key of a cache of traced functions.

    Args:
        function: Any callable. A library's function without a closure is
            returned unchanged, and so is a `GatedUnit` of this package, which
            is compared by value. On PyTorch, which traces nothing, so is every
            function.
    """
    plain = isinstance(function, types.FunctionType)
    plain = plain and _is_of_library(function) and not function.__closure__
    if plain or keras.backend.backend() == "torch":
        return function
    if isinstance(function, GatedUnit):
        own = _is_of_library(type(function))
        return function if own else KeyedUnit(function)
    return Keyed(function)


class _Walk:
    """One pass over the objects that a function reaches.

    variables: the variables found so far.
    seen: the place of each object in the order of visits, by its id. The
        objects live as long as the function.
    """

    def __init__(self) -> None:
        self.variables: list[keras.Variable] = []
        self.seen: dict[int, int] = {}

    def key_of(self, value: Any, depth: int = 0) -> Hashable:
        """Return the key of a value that is nested in `depth` objects."""
        if isinstance(value, SCALARS):
            return type(value), repr(value)
        if isinstance(value, (np.ndarray, np.generic)):
            return _key_of_array(value)
        if isinstance(value, (type, types.ModuleType)):
            return Same(value)
        if id(value) in self.seen:
            return "seen", self.seen[id(value)]
        self.seen[id(value)] = len(self.seen)
        if isinstance(value, keras.Variable):
            self.variables.append(value)
            return Same(value)
        if isinstance(value, CONTAINERS):
            return type(value), self._of_container(value, depth)
        if isinstance(value, keras.layers.Layer):
            return self._of_layer(value)
        return self._of_object(value, depth)

    def _of_container(self, value: Any, depth: int) -> Hashable:
        if isinstance(value, dict):
            return tuple(
                (self.key_of(name, depth), self.key_of(part, depth))
                for name, part in value.items()
            )
        parts = (self.key_of(part, depth) for part in value)
        is_set = isinstance(value, (set, frozenset))
        return frozenset(parts) if is_set else tuple(parts)

    def _of_layer(self, layer: keras.layers.Layer) -> Hashable:
        self.variables.extend(layer.variables)
        return Same(layer), self._of_part(layer)

    def _of_part(self, layer: keras.layers.Layer) -> Hashable:
        """Return the key of a layer's attributes, except those of Keras."""
        skipped, is_model = _names_of_keras(), isinstance(layer, keras.Model)
        parts: list[Hashable] = [Same(layer.dtype_policy)]
        for name, value in vars(layer).items():
            private = is_model and (name[0] == "_" or name in OF_TRAINING)
            if name not in skipped and not private:
                parts.append((name, self._of_attribute(value)))
        if is_model:
            parts.extend(self._of_attribute(part) for part in layer.layers)
        return tuple(parts)

    def _of_attribute(self, value: Any) -> Hashable:
        """Return the key of an attribute of a layer.

        Most attributes are arguments of the layer, which never change, so
        they are compared by identity.
        """
        if isinstance(value, keras.Variable):  # among the layer's variables
            return Same(value)
        if isinstance(value, keras.layers.Layer):
            if id(value) in self.seen:
                return Same(value)
            self.seen[id(value)] = len(self.seen)
            return Same(value), self._of_part(value)
        if isinstance(value, dict):
            items = value.items()
            return tuple((n, self._of_attribute(v)) for n, v in items)
        if isinstance(value, (list, tuple)):
            return tuple(map(self._of_attribute, value))
        if isinstance(value, SCALARS) or _is_of_user(value):
            return self.key_of(value)
        return Same(value)

    def _of_object(self, value: Any, depth: int) -> Hashable:
        if isinstance(value, types.FunctionType):
            return self._of_function(value, depth)
        if isinstance(value, types.MethodType):
            return self._of_container((value.__func__, value.__self__), depth)
        if isinstance(value, functools.partial):
            parts = value.func, value.args, value.keywords
            return self._of_container(parts, depth)
        known = getattr(value, "__dict__", None)
        if not known or not (callable(value) or depth == 0):
            return Same(value)
        kind: Any = type(value)
        frozen = getattr(kind, "__dataclass_params__", None)
        own = kind if frozen is not None and frozen.frozen else Same(value)
        return own, tuple(
            (name, self.key_of(part, depth + 1)) for name, part in known.items()
        )

    def _of_function(
        self, function: types.FunctionType, depth: int
    ) -> Hashable:
        code = function.__code__
        held = [_content(cell) for cell in function.__closure__ or ()]
        held += [function.__defaults__, function.__kwdefaults__]
        parts = [self.key_of(part, depth) for part in held]
        if not _is_of_library(function):
            space = function.__globals__
            names = [name for name in _names_in(code) if name in space]
            parts += [self._of_global(space[n], space, depth) for n in names]
        return code, Same(function.__globals__), tuple(parts)

    def _of_global(
        self, value: Any, space: dict[str, Any], depth: int
    ) -> Hashable:
        """Return the key of a global; of other modules' functions by identity.

        Such a function may reach any number of others.
        """
        if getattr(value, "__globals__", space) is not space:
            return Same(value)
        return self.key_of(value, depth)


def _key_of_array(array: Any) -> Hashable:
    if array.dtype.hasobject:
        return Same(array)
    return type(array), array.dtype.str, array.shape, array.tobytes()


def _content(cell: Any) -> Any:
    """Return what a closure's cell holds; None if its variable is unset."""
    try:
        return cell.cell_contents
    except ValueError:
        return None


def _names_in(code: types.CodeType) -> Iterable[str]:
    """Yield names of globals and attributes, including inner functions'."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _is_of_library(value: Any) -> bool:
    module = getattr(value, "__module__", None) or ""
    return module.partition(".")[0] in LIBRARIES


def _is_of_user(value: Any) -> bool:
    """Return whether an attribute may be a function that a user wrote."""
    if isinstance(value, (types.FunctionType, types.MethodType)):
        return not _is_of_library(value)
    if isinstance(value, functools.partial):
        return True
    return callable(value) and not _is_of_library(type(value))


@functools.cache
def _names_of_keras() -> frozenset[str]:
    """Return the attributes that every layer and model has from Keras."""
    layer = keras.layers.Layer(name="layer")
    return frozenset({*vars(layer), *vars(keras.Model(name="model"))})
