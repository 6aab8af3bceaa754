"""Correct `model.fit` of Keras 3.15 under `tf.distribute`.

Import this module only on the TensorFlow backend. `docs/keras-multi-worker.md`
shows each fault without this package. Delete this file once Keras has none of
them.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

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
# A line of Keras 3.15 that has each fault.
BUILD_FAULT = "self.distribute_strategy.reduce("
LOGS_FAULT = 'strategy.reduce("MEAN", v, axis=0)'


def data_parallel(model: keras.Model) -> keras.Model:
    """Make `fit`, `evaluate`, and `predict` correct under a strategy.

    The model remains the same object of the same class, and is saved, cloned,
    and compiled as before. A loaded or cloned model needs another call. A
    second call for the same model does nothing.

    - Every strategy: each replica uses the losses that its own layers added,
      for layers of any kind. (Layers of keras_moe do not need this call.)
    - `MultiWorkerMirroredStrategy`: Keras 3.15 can neither build models nor
      write logs under it, which this function corrects. A later Keras without
      these faults is left unchanged.

    Run the same lines in every worker. B is the batch size of all replicas
    together:

    - NumPy: call `fit(x, y, batch_size=B, shuffle=False)` with the whole arrays
      in every worker. TensorFlow selects the rows of each worker.
    - `tf.data` that every worker reads completely: use
      `dataset.shuffle(n, seed=0).batch(B)`. The seed is needed: without one, as
      in `fit(x, y)` with its `shuffle=True`, each worker draws another order,
      so an epoch contains some examples twice and others never.
    - `tf.data` of which each worker reads its own shard: use
      `fit(strategy.distribute_datasets_from_function(make))`, where
      `make(context)` batches by `context.get_per_replica_batch_size(B)`; or
      `AutoShardPolicy.OFF`, `.batch(B)`, and `steps_per_epoch`, the number of
      examples of all workers divided by B.
    - `predict` returns the outputs of all workers in each worker. Write a file
      in one worker only: `if not task_index: model.save(path)`.

    Under these strategies on the CPU, `steps_per_execution` above 1 and, in
    training, `jit_compile=True` fail for every Keras model.

    Args:
        model: Model that was made inside `strategy.scope()`: functional,
            `Sequential`, or subclassed, built or not, compiled or not.

    Returns:
        The same model object.

    Raises:
        ValueError: If `model` is not a Keras model, or if it was not made
            inside the scope of a strategy under which Keras trains. In `fit`,
            if `jit_compile` is `True` with several replicas of one process, or
            if the optimizer has an option that Keras applies to the gradients
            of each replica; see `docs/optimizers-and-layouts.md`.
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


def _step(
    model: keras.Model, step: Callable[[Any], Any], as_rows: bool
) -> Callable[[Any], Any]:
    """Return a step whose replicas keep their losses apart.

    Args:
        model: Model of the step.
        step: Function of a batch that returns the logs.
        as_rows: Whether each log gets a first axis, over which Keras averages
            the workers.
    """

    @functools.wraps(step)
    def run(data: Any) -> Any:
        _check_not_compiled_around_replicas(model)
        for layer in _keras.every_layer_of(model):
            kernels.keep_losses_apart(layer)
        logs = step(data)
        if as_rows:
            logs = tree.map_structure(lambda x: tf.expand_dims(x, 0), logs)
        return logs

    run.of_replicas = True  # type: ignore[attr-defined]
    return run


def _of_rows(step: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a training step that fails if this process has no rows for it.

    After the end of a process's data, TensorFlow passes batches without rows.
    Their gradients of zero would have the same weight in the mean as others.
    """
    received = f"a training step without rows in process {process_index()}"
    message = UNEVEN.format(received)

    @functools.wraps(step)
    def run(data: Any) -> Any:
        tensors = [x for x in tree.flatten(data) if isinstance(x, tf.Tensor)]
        rows = tf.shape(tensors[0])[0]
        checked = tf.debugging.assert_positive(rows, message)
        with tf.control_dependencies([checked]):
            return step(tree.map_structure(_after, data))

    return run


def _after(value: Any) -> Any:
    """Return a copy of a tensor that has the current control dependencies."""
    return tf.identity(value) if isinstance(value, tf.Tensor) else value


def _build_from_own_batch(
    strategy: tf.distribute.Strategy, build: Callable[..., Any]
) -> Callable[..., None]:
    """Return a `build` that uses the batch of this worker's first replica."""

    def own(value: Any) -> Any:
        return strategy.experimental_local_results(value)[0]

    def build_from_own_batch(
        iterator: Any = None, data_batch: Any = None
    ) -> None:
        if iterator is not None:
            _, _, batches = next(iter(iterator))
            data_batch = tree.map_structure(own, next(batches))
        build(data_batch=data_batch)

    return build_from_own_batch


def _strategy_of(model: keras.Model) -> tf.distribute.Strategy:
    """Return the strategy in whose scope a model was made, after a check."""
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


def _check_not_compiled_around_replicas(model: keras.Model) -> None:
    """Raise if XLA would compile several replicas as one program."""
    strategy = model.distribute_strategy
    mirrored = isinstance(strategy, tf.distribute.MirroredStrategy)
    if mirrored and strategy.num_replicas_in_sync > 1 and model.jit_compile:
        raise ValueError(
            "`jit_compile` must be False for a model that is trained under "
            "MirroredStrategy: one program of XLA cannot use variables of "
            "several devices. Received: jit_compile=True with "
            f"{strategy.num_replicas_in_sync} replicas. Compile the model with "
            "jit_compile=False, or 'auto'."
        )


def has_several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Return whether a strategy's replicas are in more than one process."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return False
    return _tensorflow.has_several_workers(strategy)


def _has_fault(function: Callable[..., Any] | None, line: str) -> bool:
    """Return whether a function of the running Keras contains a line."""
    try:
        return line in inspect.getsource(function)  # type: ignore[arg-type]
    except (OSError, TypeError):
        warnings.warn(
            f"It is unknown whether Keras {keras.__version__} trains under "
            "MultiWorkerMirroredStrategy, because its trainer is not that of "
            "Keras 3.15. The trainer is left unchanged. If `fit` fails, "
            "install keras==3.15.1.",
            stacklevel=3,
        )
        return False
