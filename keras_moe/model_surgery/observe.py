"""Watching what layers compute inside a model, or changing it for a while."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras

from keras_moe._keras import REMATERIALIZED_CALL
from keras_moe.model_surgery.find import layers_of

_lock = threading.Lock()


class Call(NamedTuple):
    """One call of a layer: what it was given and what it returned."""

    args: tuple
    kwargs: dict
    outputs: Any


@contextlib.contextmanager
def calling(layer: keras.layers.Layer, call: Callable):
    """Inside, the layer computes something else.

    In this thread alone: `tf.distribute` runs each replica in its own, on the
    same layers. One inside another takes its place until it ends. The layer
    is not recomputed for gradients: what a recomputed call gives to the
    outside would be unusable there.

    Args:
        layer: any layer.
        call: takes the place of its `call`.
    """
    here = threading.get_ident()
    with _lock:
        replaced = layer.__dict__.get("call")
        if not isinstance(replaced, _ByThread):
            replaced = _ByThread(layer, replaced)
            layer.__dict__["call"] = replaced
        before = replaced.calls.get(here)
        replaced.calls[here] = call
    try:
        with _computing_once([layer]):
            yield
    finally:
        with _lock:
            replaced.put_back(layer, here, before)


class _ByThread:
    """In place of a layer's `call`: what each thread has put there.

    Args:
        layer: whose `call` it is.
        own: the `call` that was assigned to the layer itself, or None.
    """

    def __init__(self, layer: keras.layers.Layer, own: Callable | None):
        self.own = own
        self.otherwise = own or own_call(layer)
        self.calls: dict[int, Callable] = {}

    def __call__(self, *args, **kwargs):
        return self.of_thread()(*args, **kwargs)

    def of_thread(self) -> Callable:
        """Returns what a call in this thread runs."""
        return self.calls.get(threading.get_ident(), self.otherwise)

    def put_back(
        self, layer: keras.layers.Layer, thread: int, before: Callable | None
    ) -> None:
        """Gives a thread the call it had before; the last one the layer's."""
        if before is not None:
            self.calls[thread] = before
            return
        del self.calls[thread]
        if not self.calls:
            del layer.__dict__["call"]
            if self.own is not None:
                layer.__dict__["call"] = self.own


def computing_once(model: keras.layers.Layer):
    """Inside, no call is repeated for gradients, whatever `RematScope` asks.

    In every thread, which changes no number.

    Args:
        model: runs inside without gradients, with all layers that it holds.
    """
    return _computing_once(layers_of(model, keras.layers.Layer))


@contextlib.contextmanager
def _computing_once(layers):
    with _lock:
        for layer in layers:
            replaced = layer.__dict__.get(REMATERIALIZED_CALL)
            if not isinstance(replaced, _Once):
                replaced = layer.__dict__[REMATERIALIZED_CALL] = _Once(replaced)
            replaced.users += 1
    try:
        yield
    finally:
        with _lock:
            for layer in layers:
                layer.__dict__[REMATERIALIZED_CALL].leave(layer)


class _Once:
    """In place of a layer's `rematerialized_call`: the call as it is.

    Args:
        own: what was assigned to the layer itself, or None.
    """

    def __init__(self, own: Callable | None):
        self.own = own
        self.users = 0

    def __call__(self, layer_call: Callable, *args, **kwargs) -> Callable:
        return layer_call

    def leave(self, layer: keras.layers.Layer) -> None:
        """Ends one use; the last one gives the layer its own back."""
        self.users -= 1
        if not self.users:
            del layer.__dict__[REMATERIALIZED_CALL]
            if self.own is not None:
                layer.__dict__[REMATERIALIZED_CALL] = self.own


def own_call(layer: keras.layers.Layer) -> Callable:
    """Returns the layer's `call` as its class has it."""
    return functools.partial(type(layer).call, layer)


def _present_call(layer):
    """What a call of the layer runs now, in this thread."""
    call = layer.__dict__.get("call")
    if isinstance(call, _ByThread):
        return call.of_thread()
    return call or own_call(layer)


@contextlib.contextmanager
def watching(layers: Iterable[keras.layers.Layer]):
    """Inside, what the layers compute is kept.

    Args:
        layers: layers of a model that runs inside.

    Yields:
        A dict from each layer's id to the list of its `Call`s.
    """
    seen: dict[int, list[Call]] = {}
    with contextlib.ExitStack() as stack:
        for layer in layers:
            if id(layer) not in seen:
                seen[id(layer)] = []
                call = _present_call(layer)
                keep = functools.partial(_keep, call, seen[id(layer)])
                stack.enter_context(calling(layer, keep))
        yield seen


def _keep(call, calls, *args, **kwargs):
    outputs = call(*args, **kwargs)
    calls.append(Call(args, kwargs, outputs))
    return outputs
