"""Put a function around each step of `fit`, `evaluate`, and `predict`."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import keras

METHODS = ("fit", "evaluate", "predict")
KINDS = ("train", "test", "predict")  # of steps


def around_calls(mark: str, run: Callable) -> None:
    """Let `run(own, model, args, kwargs)` make each outermost call.

    Args:
        mark: A name by which a second time changes nothing.
        run: Function of the method, the model, and the arguments.
    """
    running: list[keras.Model] = []
    for name in METHODS:
        own = getattr(keras.Model, name)
        if mark not in getattr(own, "marks", ()):
            setattr(keras.Model, name, _around(own, mark, run, running))


def _around(own, mark, run, running):
    @functools.wraps(own)
    def call(self, *args, **kwargs):
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
def around_steps(model: keras.Model, wrap: Callable) -> Iterator[None]:
    """Inside, a model's steps are `wrap(kind, function)`.

    Args:
        model: Any.
        wrap: Function of one of `KINDS` and of the function that Keras made;
            returns a function of the same arguments.
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
    model: keras.Model, methods: dict[str, Callable]
) -> Iterator[None]:
    """Inside, a model has other methods."""
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


def _maker(model, kind, wrap, token):
    make, name = getattr(model, f"make_{kind}_function"), f"{kind}_function"

    def make_wrapped(*args, **kwargs):
        make(*args, **kwargs)
        function = getattr(model, name)
        if not _is_wrapped(function, token):
            wrapped = wrap(kind, function)
            wrapped.wrapped_step, wrapped.token = function, token
            setattr(model, name, wrapped)
        return getattr(model, name)

    return make_wrapped


def _is_wrapped(function, token):
    while hasattr(function, "wrapped_step"):
        if function.token is token:
            return True
        function = function.wrapped_step
    return False
