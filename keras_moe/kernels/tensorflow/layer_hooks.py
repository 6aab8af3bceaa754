"""TensorFlow: the losses of replicas, and the graph that is traced."""

import contextlib
import threading
import weakref
from collections.abc import Iterable
from typing import Any

import keras
import tensorflow as tf

from keras_moe import _keras
from keras_moe._tensorflow import is_recorded
from keras_moe.types import Tensor


class LossesOfThreads(threading.local):
    """A replacement of a layer's list of losses with one list per thread."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def __reduce__(self) -> tuple[type["LossesOfThreads"], tuple[()]]:
        return LossesOfThreads, ()

    def extend(self, losses: Iterable[Tensor]) -> None:
        """Add losses, as `add_loss` does."""
        self.losses.extend(losses)

    def clear(self) -> None:
        """Remove all losses, as a call of a model does."""
        self.losses.clear()

    def __getitem__(self, index: Any) -> Any:
        return self.losses[index]

    def __len__(self) -> int:
        return len(self.losses)


def keep_losses_apart(layer: keras.layers.Layer) -> None:
    """Replace the attribute in which Keras keeps the losses."""
    _keras.replace_added_losses(layer, LossesOfThreads)


def trace_here() -> object:
    """Return the present graph, weakly, and whether a tape records operations.

    `tf.recompute_grad` records nothing of its first run.
    """
    recording = is_recorded()
    if tf.executing_eagerly():
        return None, recording
    return weakref.ref(tf.compat.v1.get_default_graph()), recording


def is_traced_here(value: Tensor) -> bool:
    """Return whether a tensor belongs to the present graph.

    Eager tensors and variables belong to no graph.
    """
    if tf.executing_eagerly() or not tf.is_symbolic_tensor(value):
        return False
    graph: object = tf.compat.v1.get_default_graph()
    return value.graph is graph


def outside_of_traces() -> contextlib.AbstractContextManager[Any]:
    """Return a context that makes constants which every graph can capture."""
    scope: contextlib.AbstractContextManager[Any] = tf.init_scope()
    return scope
