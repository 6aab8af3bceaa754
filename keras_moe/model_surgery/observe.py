"""Keep what layers compute inside a model, or replace it for a while."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeAlias

import keras

from keras_moe._keras import REMATERIALIZED_CALL
from keras_moe.model_surgery.find import layers_of

LayerCall: TypeAlias = Callable[..., Any]
"""The `call` of a layer, or a function in its place."""

_lock = threading.Lock()


class Call(NamedTuple):
    """One call of a layer: its arguments and its outputs."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: Any


@contextlib.contextmanager
def calling(layer: keras.layers.Layer, call: LayerCall) -> Iterator[None]:
    """Let a layer compute something else inside.

    This holds in the current thread alone, since `tf.distribute` runs each
    replica in a thread of its own, on the same layers. If contexts are nested,
    the inner one counts. The layer is not recomputed for gradients, since
    tensors of a recomputed call could not be used outside of it.

    Args:
        layer: Any layer.
        call: Function that takes the place of the layer's `call`.
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
    """Run, in place of a layer's `call`, the function of the current thread.

    Args:
        layer: Layer whose `call` is replaced.
        own: The `call` that was assigned to the layer object, or `None`.
    """

    def __init__(self, layer: keras.layers.Layer, own: LayerCall | None):
        self.own = own
        self.otherwise = own or own_call(layer)
        self.calls: dict[int, LayerCall] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.of_thread()(*args, **kwargs)

    def of_thread(self) -> LayerCall:
        """Return the function that a call in this thread runs."""
        return self.calls.get(threading.get_ident(), self.otherwise)

    def put_back(
        self, layer: keras.layers.Layer, thread: int, before: LayerCall | None
    ) -> None:
        """Restore a thread's earlier call; after the last, the layer's own."""
        if before is not None:
            self.calls[thread] = before
            return
        del self.calls[thread]
        if not self.calls:
            del layer.__dict__["call"]
            if self.own is not None:
                layer.__dict__["call"] = self.own


def computing_once(
    model: keras.layers.Layer,
) -> contextlib.AbstractContextManager[None]:
    """Keep layers in a `keras.RematScope` from being recomputed inside.

    This holds in every thread; it changes the memory used, but no number.

    Args:
        model: Model or layer, with all layers inside it.
    """
    return _computing_once(layers_of(model, keras.layers.Layer))


@contextlib.contextmanager
def _computing_once(layers: list[keras.layers.Layer]) -> Iterator[None]:
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
    """Return the call unchanged, in place of a `rematerialized_call`.

    Args:
        own: The method that was assigned to the layer object, or `None`.
    """

    def __init__(self, own: LayerCall | None):
        self.own = own
        self.users = 0

    def __call__(
        self, layer_call: LayerCall, *args: Any, **kwargs: Any
    ) -> LayerCall:
        return layer_call

    def leave(self, layer: keras.layers.Layer) -> None:
        """End one use; after the last, restore the layer's own method."""
        self.users -= 1
        if not self.users:
            del layer.__dict__[REMATERIALIZED_CALL]
            if self.own is not None:
                layer.__dict__[REMATERIALIZED_CALL] = self.own


def own_call(layer: keras.layers.Layer) -> LayerCall:
    """Return the `call` of the layer's class, bound to the layer."""
    return functools.partial(type(layer).call, layer)


def _present_call(layer: keras.layers.Layer) -> LayerCall:
    """Return the function that a call of the layer runs in this thread now."""
    call: LayerCall | None = layer.__dict__.get("call")
    if isinstance(call, _ByThread):
        return call.of_thread()
    return call or own_call(layer)


@contextlib.contextmanager
def watching(
    layers: Iterable[keras.layers.Layer],
) -> Iterator[dict[int, list[Call]]]:
    """Keep the calls of layers inside.

    Args:
        layers: Layers of a model that runs inside.

    Yields:
        A dict from the id of each layer to the list of its `Call`s.
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


def _keep(call: LayerCall, calls: list[Call], *args: Any, **kwargs: Any) -> Any:
    outputs = call(*args, **kwargs)
    calls.append(Call(args, kwargs, outputs))
    return outputs
