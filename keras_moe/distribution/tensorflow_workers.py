"""TensorFlow: what `model.fit` under `tf.distribute` lacks in Keras 3.15.

Imported on the TensorFlow backend alone. `docs/keras-multi-worker.md` shows
each cause without this package; the file may go once Keras has none of them.
"""

import functools
import inspect
import warnings
from collections.abc import Callable

import keras
import tensorflow as tf
from keras import tree

from keras_moe import _keras, _tensorflow, kernels
from keras_moe.distribution import even_batches
from keras_moe.distribution.environment import process_index
from keras_moe.distribution.referee import UNEVEN
from keras_moe.distribution.tensorflow_optimizers import CheckedMaker

STRATEGIES = (
    tf.distribute.MirroredStrategy,
    tf.distribute.MultiWorkerMirroredStrategy,
    tf.distribute.TPUStrategy,
    tf.distribute.OneDeviceStrategy,
)
# A line of each fault in Keras 3.15.
BUILD_FAULT = "self.distribute_strategy.reduce("
LOGS_FAULT = 'strategy.reduce("MEAN", v, axis=0)'


def data_parallel(model: keras.Model) -> keras.Model:
    """Makes `fit`, `evaluate` and `predict` right under a strategy.

    It is the same object of the same class, and saved, cloned and compiled as
    before. Neither a file nor a clone remembers the call: make it again after
    either. A second one changes nothing.

    - Every strategy: a replica is given the losses that its own layers added,
      whatever layers these are. (Those of keras_moe need no call.)
    - `MultiWorkerMirroredStrategy`: Keras 3.15 can neither build nor log
      there. Where the running Keras can, it is left as it is.

    Every worker runs the same lines. B is the batch of all replicas together:

    - NumPy: `fit(x, y, batch_size=B, shuffle=False)` with the whole arrays on
      every worker; TensorFlow gives each its rows of each batch.
    - `tf.data` that every worker reads whole: `dataset.shuffle(n, seed=0)
      .batch(B)`, and the same follows. The seed matters: without one, as in
      `fit(x, y)` with its `shuffle=True`, each worker draws another order,
      and an epoch holds some examples twice and others never.
    - `tf.data` of which each worker reads its own shard: `fit(strategy.
      distribute_datasets_from_function(make))`, where `make(context)` batches
      by `context.get_per_replica_batch_size(B)`; or `AutoShardPolicy.OFF`,
      `.batch(B)` and `steps_per_epoch`, examples of all workers over B.
    - `predict` gives each worker the outputs of all. A file is written by
      one: `if not task_index: model.save(path)`.

    `steps_per_execution` above 1 and, in training, `jit_compile=True` fail
    under these strategies on the CPU for every Keras model.

    Args:
        model: made inside `strategy.scope()`; functional, `Sequential` or
            subclassed, built or not, compiled or not.

    Returns:
        The model.

    Raises:
        ValueError: for what is no model, and for one that was not made inside
            the scope of a strategy under which Keras trains. In `fit`, for
            `jit_compile=True` under several replicas of one process, and for
            options of the optimizer that Keras applies to each replica's
            gradients: `docs/optimizers-and-layouts.md` has the table.
    """
    strategy = _strategy_of(model)
    if getattr(model.train_step, "of_replicas", False):
        return model
    even_batches.install()
    several = has_several_workers(strategy)
    as_rows = several and _has_fault(_keras.replica_reduction(), LOGS_FAULT)
    train_step = model.train_step
    if several:
        train_step = _of_rows(train_step)
    model.train_step = _step(model, train_step, as_rows)
    model.test_step = _step(model, model.test_step, as_rows)
    build = _keras.symbolic_build_of(model)
    if several and _has_fault(build, BUILD_FAULT):
        own_build = _build_from_own_batch(strategy, build)  # type: ignore[arg-type]
        _keras.replace_symbolic_build(model, own_build)
    model.__dict__["make_train_function"] = CheckedMaker(model)
    model.train_function = model.test_function = None
    return model


def _step(model, step: Callable, as_rows: bool) -> Callable:
    """A step whose replicas keep their losses apart.

    Args:
        model: whose step it is.
        step: function of a batch; returns the logs.
        as_rows: whether each log is given an axis in front, over which Keras
            takes the workers' mean.
    """

    @functools.wraps(step)
    def run(data):
        _check_not_compiled_around_replicas(model)
        for layer in _keras.every_layer_of(model):
            kernels.keep_losses_apart(layer)
        logs = step(data)
        if as_rows:
            logs = tree.map_structure(lambda x: tf.expand_dims(x, 0), logs)
        return logs

    run.of_replicas = True  # type: ignore[attr-defined]
    return run


def _of_rows(step: Callable) -> Callable:
    """A training step that fails if this process has no rows for it.

    TensorFlow gives a process whose data are over batches without rows. Its
    gradients, zeros, would count as much in the mean as the others'.
    """
    received = f"a training step without rows in process {process_index()}"
    message = UNEVEN.format(received)

    @functools.wraps(step)
    def run(data):
        tensors = [x for x in tree.flatten(data) if isinstance(x, tf.Tensor)]
        rows = tf.shape(tensors[0])[0]
        checked = tf.debugging.assert_positive(rows, message)
        with tf.control_dependencies([checked]):
            return step(tree.map_structure(_after, data))

    return run


def _after(value):
    """A tensor as it is, after what it depends on now."""
    return tf.identity(value) if isinstance(value, tf.Tensor) else value


def _build_from_own_batch(strategy, build: Callable) -> Callable:
    """Builds the model from the batch of this worker's first replica."""

    def own(value):
        return strategy.experimental_local_results(value)[0]

    def build_from_own_batch(iterator=None, data_batch=None):
        if iterator is not None:
            _, _, batches = next(iter(iterator))
            data_batch = tree.map_structure(own, next(batches))
        build(data_batch=data_batch)

    return build_from_own_batch


def _strategy_of(model):
    """The strategy in whose scope a model was made, checked."""
    if not isinstance(model, keras.Model):
        raise ValueError(
            f"`model` must be a keras.Model. Received: {model!r}. Pass the "
            "model that is trained."
        )
    strategy = _keras.strategy_of(model)
    if isinstance(strategy, STRATEGIES):
        return strategy
    received = "none" if strategy is None else type(strategy).__name__
    raise ValueError(
        "`model` must be made inside the scope of a tf.distribute strategy "
        "under which Keras trains: "
        f"{', '.join(kind.__name__ for kind in STRATEGIES)}. Received: "
        f"strategy={received}. Write `with strategy.scope():` around the "
        "lines that make and compile the model."
    )


def _check_not_compiled_around_replicas(model):
    """Keras puts XLA around all replicas, which may not share a program."""
    strategy = model.distribute_strategy
    mirrored = isinstance(strategy, tf.distribute.MirroredStrategy)
    if mirrored and strategy.num_replicas_in_sync > 1 and model.jit_compile:
        raise ValueError(
            "`jit_compile` must be False for a model that is trained under "
            "MirroredStrategy: one program of XLA cannot hold variables of "
            "several devices. Received: jit_compile=True with "
            f"{strategy.num_replicas_in_sync} replicas. Compile the model with "
            "jit_compile=False, or 'auto'."
        )


def has_several_workers(strategy) -> bool:
    """Whether the strategy's replicas are in more than one process."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    return _tensorflow.has_several_workers(strategy)


def _has_fault(function: Callable | None, line: str) -> bool:
    """Whether a line stands in a function of the running Keras."""
    try:
        return line in inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):
        warnings.warn(
            f"Cannot tell whether Keras {keras.__version__} trains under "
            "MultiWorkerMirroredStrategy: its trainer is not the one that was "
            "tried, of Keras 3.15. It is left as it is. If `fit` fails, "
            "install keras==3.15.1.",
            stacklevel=3,
        )
        return False
