"""Watching what layers compute inside a model, or changing it for a while."""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import keras

_CALLS: dict[int, dict[int, Callable]] = {}  # by layer, by thread


class Call(NamedTuple):
    """One call of a layer: what it was given and what it returned."""

    args: tuple
    kwargs: dict
    outputs: Any


@contextlib.contextmanager
def calling(layer: keras.layers.Layer, call: Callable):
    """Inside, the layer computes something else.

    In this thread alone: `tf.distribute` runs each replica in its own, on the
    same layers.

    Args:
        layer: any layer.
        call: takes the place of its `call`.
    """
    here = threading.get_ident()
    calls = _CALLS.setdefault(id(layer), {})
    calls[here] = call

    def call_of_thread(*args, **kwargs):
        chosen = calls.get(threading.get_ident())
        if chosen is None:
            chosen = own_call(layer)
        return chosen(*args, **kwargs)

    layer.__dict__["call"] = call_of_thread
    try:
        yield
    finally:
        del calls[here]
        if not calls:
            del layer.__dict__["call"]
            del _CALLS[id(layer)]


def own_call(layer: keras.layers.Layer) -> Callable:
    """Returns the layer's `call` as its class has it."""
    return functools.partial(type(layer).call, layer)


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
                keep = functools.partial(_keep, layer, seen[id(layer)])
                stack.enter_context(calling(layer, keep))
        yield seen


def _keep(layer, calls, *args, **kwargs):
    outputs = own_call(layer)(*args, **kwargs)
    calls.append(Call(args, kwargs, outputs))
    return outputs
