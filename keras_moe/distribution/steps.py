"""Put a function around each step of `fit`, `evaluate`, and `predict`."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import keras

METHODS = ("fit", "evaluate", "predict")
KINDS = ("train", "test", "predict")  # the kinds of steps
Function: TypeAlias = Callable[..., Any]


def around_calls(mark: str, run: Function) -> None:
    """Make `run(own, model, args, kwargs)` run each outermost call.

    Args:
        mark: Name of the change. A second call with the same name does nothing.
        run: Function of the method, the model, and the arguments.
    """
    running: list[keras.Model] = []
    for name in METHODS:
        own = getattr(keras.Model, name)
        if mark not in getattr(own, "marks", ()):
            setattr(keras.Model, name, _around(own, mark, run, running))


def _around(
    own: Function, mark: str, run: Function, running: list[keras.Model]
) -> Function:
    @functools.wraps(own)
    def call(self: keras.Model, *args: Any, **kwargs: Any) -> Any:
        if self in running:
            return own(self, *args, **kwargs)
        running.append(self)
        try:
            return run(own, self, args, kwargs)
        finally:
            running.pop()

    marks = (*getattr(own, "marks", ()), mark)
    call.marks = marks  # type: ignore[attr-defined]
    return call


@contextlib.contextmanager
def around_steps(
    model: keras.Model, wrap: Callable[[str, Function], Function]
) -> Iterator[None]:
    """Replace a model's steps by `wrap(kind, function)` inside.

    Args:
        model: Any `keras.Model`.
        wrap: Function of one of `KINDS` and of the step's function that Keras
            made. It returns a function of the same arguments.
    """
    token = object()
    makers = {
        f"make_{kind}_function": _maker(model, kind, wrap, token)
        for kind in KINDS
    }
    try:
        with replaced(model, makers):
            yield
    finally:
        for kind in KINDS:
            function = getattr(model, f"{kind}_function")
            while hasattr(function, "wrapped_step"):
                function = function.wrapped_step
            setattr(model, f"{kind}_function", function)


@contextlib.contextmanager
def replaced(
    model: keras.Model, methods: dict[str, Function]
) -> Iterator[None]:
    """Replace methods of a model inside.

    Args:
        model: Any `keras.Model`.
        methods: Dict from the names of the methods to the functions.
    """
    before = {name: model.__dict__.get(name) for name in methods}
    model.__dict__.update(methods)
    try:
        yield
    finally:
        for name, method in before.items():
            if method is None:
                del model.__dict__[name]
            else:
                model.__dict__[name] = method


def _maker(
    model: keras.Model,
    kind: str,
    wrap: Callable[[str, Function], Function],
    token: object,
) -> Function:
    make, name = getattr(model, f"make_{kind}_function"), f"{kind}_function"

    def make_wrapped(*args: Any, **kwargs: Any) -> Function:
        make(*args, **kwargs)
        function: Function = getattr(model, name)
        if not _is_wrapped(function, token):
            wrapped: Any = wrap(kind, function)
            wrapped.wrapped_step, wrapped.token = function, token
            function = wrapped
            setattr(model, name, function)
        return function

    return make_wrapped


def _is_wrapped(function: Any, token: object) -> bool:
    while hasattr(function, "wrapped_step"):
        if function.token is token:
            return True
        function = function.wrapped_step
    return False
