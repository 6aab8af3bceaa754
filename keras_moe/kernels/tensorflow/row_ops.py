"""TensorFlow: the primitives that keras.ops has not.

What each does is said in `primitives.py` and `objects.py`.
"""

import threading
import weakref
from collections.abc import Callable, Iterable, Sequence

import tensorflow as tf
from tensorflow.python.eager import forwardprop_util, record
from tensorflow.python.ops import control_flow_util

from keras_moe.types import Tensor

NOT_TOGETHER = (
    "`fn` of `strategy.run(fn)` must be a plain function for a model with a "
    "mixture in training: the mixture sums its load over the replicas, and "
    "TensorFlow cannot wait for other replicas in a nested `tf.function` or in "
    "a program that XLA compiles for CPUs. Received: {}. Decorate the function "
    "that calls `strategy.run` with `@tf.function` instead, without "
    "`jit_compile=True`."
)


def compiled(
    function: Callable, variables: Sequence, written: Sequence = ()
) -> Callable:
    """A graph refers to variables by itself."""
    program = tf.function(function, autograph=False)

    def call(*args):
        return program(*tf.nest.map_structure(tf.convert_to_tensor, args))

    return call


def sum_over_replicas(x: Tensor) -> Tensor:
    """Over the replicas of a `tf.distribute` strategy."""
    if num_replicas() == 1:
        return x
    if inside_xla() and tf.config.list_logical_devices("GPU") == []:
        raise RuntimeError(NOT_TOGETHER.format("`jit_compile=True` on CPUs"))
    context = tf.distribute.get_replica_context()
    try:
        return context.all_reduce(tf.distribute.ReduceOp.SUM, x)
    except RuntimeError as error:
        if "merge_call" not in str(error):
            raise
        raise RuntimeError(
            NOT_TOGETHER.format("a `tf.function` inside `strategy.run`")
        ) from error


def num_replicas() -> int:
    """Outside of a replica's computation there is one."""
    context = tf.distribute.get_replica_context()
    return 1 if context is None else context.num_replicas_in_sync


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


def keep_losses_apart(layer) -> None:
    """By the one private attribute in which Keras 3.15 keeps them."""
    if isinstance(getattr(layer, "_losses", None), list):
        layer._losses = LossesOfThreads()


def require(valid: Tensor, message: str) -> Tensor:
    """In a graph an operation of its own, which fails when it runs."""
    if tf.executing_eagerly():
        if not bool(tf.reduce_all(valid)):
            raise ValueError(message)
        return valid
    check = tf.debugging.Assert(tf.reduce_all(valid), [message])
    with tf.control_dependencies([check]):
        return tf.identity(valid)


def known_int(value: Tensor) -> int | None:
    """Not of a tensor of a graph."""
    eager = isinstance(value, tf.Tensor) and hasattr(value, "numpy")
    return int(value) if eager else None


def shapes_known(x: Tensor) -> str:
    """Under XLA all, but a trace may not know the batch; else none."""
    return "whole" if inside_xla() else "at run time"


def shape_of_count(count: Tensor, otherwise: int) -> int | Tensor:
    """A scalar of the graph, unless XLA compiles it."""
    return otherwise if inside_xla() else count


def in_forward_mode(x: Tensor) -> bool:
    """Return whether a `tf.autodiff.ForwardAccumulator` is in effect.

    TensorFlow has no public function for it.

    Args:
        x: any tensor.
    """
    return bool(forwardprop_util.pack_tangents([x]).indices)


def inside_xla() -> bool:
    """Whether what is traced now is compiled by XLA."""
    graph = tf.compat.v1.get_default_graph()
    return control_flow_util.GraphOrParentsInXlaContext(graph)


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """By a tape of its own."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        value = function(x)
    gradient = tape.gradient(
        value, x, unconnected_gradients=tf.UnconnectedGradients.ZERO
    )
    return value, gradient


def trace_here() -> object:
    """The graph that operations are added to, weakly, and whether a tape
    records them: `tf.recompute_grad` records nothing of its first run."""
    recording = record.could_possibly_record()
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
