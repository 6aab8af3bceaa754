"""TensorFlow: the losses of replicas, and what is traced."""

import threading
import weakref
from collections.abc import Iterable

import keras
import tensorflow as tf

from keras_moe import _keras
from keras_moe._tensorflow import is_recorded
from keras_moe.types import Tensor


class LossesOfThreads(threading.local):
    """In place of a layer's list of losses; each thread sees its own."""

    def __init__(self):
        self.losses = []

    def __reduce__(self):
        return LossesOfThreads, ()

    def extend(self, losses: Iterable[Tensor]) -> None:
        """What `add_loss` does."""
        self.losses.extend(losses)

    def clear(self) -> None:
        """What entering a model does."""
        self.losses.clear()

    def __getitem__(self, index):
        return self.losses[index]

    def __len__(self):
        return len(self.losses)


def keep_losses_apart(layer: keras.layers.Layer) -> None:
    """In the attribute in which Keras keeps them."""
    _keras.replace_added_losses(layer, LossesOfThreads)


def trace_here() -> object:
    """The graph that operations are added to, weakly, and whether a tape
    records them: `tf.recompute_grad` records nothing of its first run."""
    recording = is_recorded()
    if tf.executing_eagerly():
        return None, recording
    return weakref.ref(tf.compat.v1.get_default_graph()), recording


def is_traced_here(value: Tensor) -> bool:
    """An eager tensor and a variable belong to no graph."""
    if tf.executing_eagerly() or not tf.is_symbolic_tensor(value):
        return False
    return value.graph is tf.compat.v1.get_default_graph()


def outside_of_traces():
    """A constant that every graph takes in."""
    return tf.init_scope()
