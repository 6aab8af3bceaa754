"""Stop within an epoch and resume in another layout.

Run `python resume_elsewhere.py FOLDER`, in two processes on PyTorch. A layout
is a number of PyTorch processes, or of devices of one TensorFlow or JAX
process. The logs of each run are written to `FOLDER/found.json`.
"""

import json
import os
import pathlib
import sys

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=2",
    ]
)
if os.environ["KERAS_BACKEND"] != "tensorflow":
    import light_keras  # noqa: F401
else:
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 2,
    )

import keras  # noqa: E402
import numpy as np  # noqa: E402
from backend import BACKEND  # noqa: E402
from distributed_model import (  # noqa: E402
    BATCH,
    CLASSES,
    LENGTH,
    WIDTH,
    make_data,
    set_weights,
)
from keras import ops  # noqa: E402

from keras_moe.distribution import (  # noqa: E402
    data_parallel,
    expert_parallel,
    initialize,
    process_index,
)
from keras_moe.distribution.backup import BackupAndResume  # noqa: E402

EPOCHS, STEPS = 2, 3


class Rows(keras.metrics.Metric):
    """Counts examples in integers; the counts of replicas are summed."""

    def __init__(self):
        super().__init__(name="rows")
        self.count = self.add_variable((), "zeros", dtype="int32", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign_add(ops.cast(ops.shape(y_pred)[0], "int32"))

    def result(self):
        return ops.cast(self.count, "float32")


class Steps(keras.metrics.Metric):
    """Counts steps; all replicas have the same count."""

    def __init__(self):
        super().__init__(name="steps")
        self.count = self.add_variable(
            (), "zeros", aggregation="only_first_replica", name="count"
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.count.assign_add(1.0)

    def result(self):
        return self.count + 0.0


class Label(keras.metrics.Metric):
    """Sums the mean label over steps; the sums of replicas are averaged."""

    def __init__(self):
        super().__init__(name="label")
        self.total = self.add_variable(
            (), "zeros", aggregation="mean", name="total"
        )

    def update_state(self, y_true, y_pred, sample_weight=None):
        self.total.assign_add(ops.mean(ops.cast(y_true, "float32")))

    def result(self):
        return self.total + 0.0


class Stopped(Exception):
    pass


class StopWithinEpoch(keras.callbacks.Callback):
    """Stops the first epoch after its second batch, which is saved."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 1:
            raise Stopped


def make():
    """Return a small model without experts, which rounding could reroute."""
    model = keras.Sequential(
        [
            keras.Input((LENGTH, WIDTH)),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(CLASSES),
        ]
    )
    set_weights(model)
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy", Rows(), Steps(), Label()],
    )
    return model


def make_on(layout):
    if BACKEND == "tensorflow":
        names = [f"CPU:{i}" for i in range(layout)]
        with tf.distribute.MirroredStrategy(names).scope():
            return make()
    if BACKEND == "jax":
        distribution = expert_parallel(layout) if layout > 1 else None
        keras.distribution.set_distribution(distribution)
        return make()
    return data_parallel(make()) if layout > 1 else make()


def data_of(layout):
    """Return the rows of this process, and its number of rows per batch."""
    x, y = make_data(STEPS)
    if BACKEND != "torch" or layout == 1:
        return x, y, BATCH
    rows = np.arange(len(x)).reshape(-1, layout, BATCH // layout)
    rows = rows[:, process_index()].ravel()
    return x[rows], y[rows], BATCH // layout


def fit(layout, *callbacks):
    """Return the logs of all epochs, or None if the training is stopped."""
    x, y, batch = data_of(layout)
    try:
        history = make_on(layout).fit(
            x,
            y,
            batch_size=batch,
            epochs=EPOCHS,
            shuffle=False,
            verbose=0,
            callbacks=list(callbacks),
        )
    except Stopped:
        return None
    return history.history


def main(folder):
    folder = pathlib.Path(folder)
    found = {}

    def stop(first, then):
        backup = BackupAndResume(folder / f"{first} to {then}", save_freq=2)
        assert fit(first, backup, StopWithinEpoch()) is None

    def resume(first, then):
        backup = BackupAndResume(folder / f"{first} to {then}", save_freq=2)
        found[f"{first} to {then}"] = fit(then, backup)

    if int(os.environ.get("RANK", 0)) == 0:
        found["alone"] = fit(1)
        stop(1, 2)
    initialize()
    resume(1, 2)
    for then in (1, 2):
        stop(2, then)
    resume(2, 2)
    if BACKEND == "torch":
        import torch

        torch.distributed.destroy_process_group()
    if int(os.environ.get("RANK", 0)) == 0:
        resume(2, 1)
        (folder / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
