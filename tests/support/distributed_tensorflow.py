"""Train under a strategy of two replicas and write the results to a folder.

`python distributed_tensorflow.py mirrored FOLDER everything` uses two devices
in one process. `python distributed_tensorflow.py worker FOLDER everything` is
one of two processes, which TF_CONFIG describes. `fit` or `own_step` instead of
`everything` runs only a part.
"""

import json
import os
import pathlib
import sys

import distributed_model
import keras
import numpy as np
import tensorflow as tf
from distributed_model import BATCH, EXPERTS, WIDTH

import keras_moe


def mirrored_strategy():
    """Return a strategy of two replicas on the CPU."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * 2
    )
    return tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])


class SmallSquares(keras.layers.Layer):
    """A layer outside keras_moe that adds a loss."""

    def call(self, x):
        self.add_loss(keras.ops.mean(keras.ops.square(x)))
        return x


class OwnStep(keras.Model):
    """A subclassed model with its own training step and its own log.

    Its first batch builds it. A layer outside keras_moe adds a loss before the
    block does. Each replica computes the block's loss from its own examples.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.embed = keras.layers.Dense(WIDTH)
        self.small = SmallSquares()
        self.block = keras_moe.MoEBlock(EXPERTS, 8, load_balancing_weight=1.0)
        self.head = keras.layers.Dense(1)

    def call(self, inputs, training=None):
        x = self.small(self.embed(inputs))
        x = x + self.block(x, training=training)
        return self.head(keras.ops.mean(x, axis=1))

    def train_step(self, data):
        x = data[0]
        means = keras.ops.mean(x, axis=(0, 1))
        return {**super().train_step(data), "means": means}


def train_own_step(data_parallel=lambda model: model):
    """Train `OwnStep` for two steps on batches of two equal halves.

    With equal halves, a replica has the losses that one device has for the
    whole batch.
    """
    x, _ = distributed_model.make_data(1)
    x = np.concatenate([x[: BATCH // 2]] * 4)
    y = x.mean(axis=(1, 2))[:, None]
    keras.utils.set_random_seed(0)
    model = OwnStep()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    model = data_parallel(model)
    fit = model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    logs = {k: np.asarray(v[0]) for k, v in fit.history.items()}
    weights = {str(i): w for i, w in enumerate(model.get_weights())}
    return logs | weights


def use(model, *data, **fit_arguments):
    """Return the results of `fit`, `evaluate`, and `predict`."""
    found = {"losses": distributed_model.train(model, *data, **fit_arguments)}
    x, y = distributed_model.make_data()
    found |= distributed_model.weights_of(model)
    found["evaluated"] = np.array(model.evaluate(x, y, BATCH, verbose=0))
    found["predicted"] = model.predict(x, BATCH, verbose=0)
    return found


def under_xla(model):
    """Return the predictions under XLA, and the error message of `fit`."""
    x, y = distributed_model.make_data()
    with model.distribute_strategy.scope():
        distributed_model.compile_model(model, jit_compile=True)
    predicted = model.predict(x, BATCH, verbose=0)
    try:
        model.fit(x, y, BATCH, verbose=0)
    except ValueError as error:
        return predicted, str(error)
    return predicted, "trained"


def own_shards(strategy):
    """Return data that gives the replicas the batches that one device has."""
    x, y = distributed_model.make_data()

    def make(context):
        size = context.get_per_replica_batch_size(BATCH)
        mine = np.arange(len(x)).reshape(-1, size)
        mine = mine[context.input_pipeline_id :: context.num_input_pipelines]
        rows = mine.reshape(-1)
        data = tf.data.Dataset.from_tensor_slices((x[rows], y[rows]))
        return data.batch(size)

    return strategy.distribute_datasets_from_function(make)


def main(kind, folder, runs):
    """Write `KIND-INDEX.npz`; the chief also writes `KIND.keras`."""
    from keras_moe.distribution.tensorflow_workers import data_parallel

    index = 0
    if kind == "mirrored":
        strategy = mirrored_strategy()
    else:
        index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    found = {}
    if runs in ("fit", "everything"):
        model, found = use_common_model(kind, strategy)
        if index == 0:
            model.save(pathlib.Path(folder) / f"{kind}.keras")
    if runs in ("own_step", "everything"):
        with strategy.scope():
            own_step = train_own_step(data_parallel)
        found |= {f"own_step/{name}": v for name, v in own_step.items()}
    np.savez(pathlib.Path(folder) / f"{kind}-{index}.npz", **found)
    if kind == "mirrored" and runs == "everything":
        predicted, message = under_xla(data_parallel(model))
        path = pathlib.Path(folder) / "xla.npz"
        np.savez(path, predicted=predicted, message=message)


def use_common_model(kind, strategy):
    """Return the common model after training, and its results."""
    from keras_moe.distribution.tensorflow_workers import data_parallel

    with strategy.scope():
        model = distributed_model.make_model()
    if kind == "mirrored":
        x, y = distributed_model.make_data()
        found = use(model, x, y, batch_size=BATCH)
    else:
        found = use(data_parallel(model), own_shards(strategy))
    return model, found


if __name__ == "__main__":
    # conftest.py does the same in the process of the tests.
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )
    main(*sys.argv[1:])
