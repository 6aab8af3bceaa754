"""Train every row on two mirrored devices of TensorFlow.

Run `python optimizer_layouts_tensorflow.py FOLDER ROWS LAYOUTS`. ROWS and
LAYOUTS are JSON lists; an empty list of layouts stands for all. The weights,
or the error, go to `FOLDER/0.npz`.
"""

import json
import pathlib
import sys

import numpy as np
import tensorflow as tf
from optimizer_layouts import make_model, trained

from keras_moe.distribution import data_parallel


def main(folder, rows, layouts):
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )
    cpus = tf.config.list_physical_devices("CPU")
    one = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpus[0], [one, one])
    # All rows share one strategy, because the collectives of a second strategy
    # may collide with those of the first.
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])

    def make(row):
        with strategy.scope():
            model = data_parallel(make_model(row))
            # TensorFlow retraces a step that creates variables.
            model.optimizer.build(model.trainable_variables)
        return model

    found = {
        f"{row}:{layout}": trained(row, make)
        for row in rows
        for layout in layouts or ["MirroredStrategy"]
    }
    np.savez(folder / "0.npz", **found)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *map(json.loads, sys.argv[2:]))
