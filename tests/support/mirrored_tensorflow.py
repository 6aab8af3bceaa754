"""Train Dense layers of Keras on two devices of TensorFlow, and on one.

`python mirrored_tensorflow.py FOLDER` writes `found.json`. For each option of
Keras, it holds the difference of the weights, or the error. It also holds the
errors of a mixture inside a nested `tf.function`.
"""

import json
import pathlib
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_moe import MoEBlock

DEVICES = ["CPU:0", "CPU:1"]
OPTIONS = {
    "none": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "EMA": {"use_ema": True, "ema_momentum": 0.5, "ema_overwrite_frequency": 3},
    "global_clipnorm": {"global_clipnorm": 0.1},
    "clipvalue": {"clipvalue": 0.05},
    "short batch": {},
}


def trained(rows, options, eagerly=False):
    """Return the weights after two epochs on rows that differ."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, 4)).astype("float32")
    x *= np.arange(1, rows + 1, dtype="float32")[:, None] / rows
    y = x @ rng.normal(size=(4, 1)).astype("float32")
    layer = keras.layers.Dense(1, kernel_initializer="ones")
    model = keras.Sequential([keras.Input((4,)), layer])
    optimizer = keras.optimizers.SGD(0.1, **options)
    model.compile(optimizer, "mse", run_eagerly=eagerly)
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
    return np.concatenate([np.ravel(w) for w in model.get_weights()])


def difference(name):
    """Return the largest difference between two devices and one."""
    rows = 19 if name == "short batch" else 32
    wanted = trained(rows, OPTIONS[name], eagerly=True)  # without tracing
    try:
        with tf.distribute.MirroredStrategy(DEVICES).scope():
            found = trained(rows, OPTIONS[name])
    except Exception as error:  # what Keras raises changes with its version
        return f"{type(error).__name__}: {error}"
    return float(np.max(np.abs(found - wanted)))


def nested(make_layer, jit_compile):
    """Return the error of a gradient in a `tf.function` inside `run`."""
    strategy = tf.distribute.MirroredStrategy(DEVICES)
    with strategy.scope():
        model = keras.Sequential([keras.Input((4,)), make_layer()])

    @tf.function(jit_compile=jit_compile)
    def gradient(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) ** 2)
        return tape.gradient(loss, model.trainable_weights)

    @tf.function
    def run(x):
        return strategy.run(lambda x: gradient(x), args=(x,))

    try:
        run(tf.ones((3, 4)))
    except RuntimeError as error:
        return str(error)
    return None


def main(folder):
    """Write all results to `found.json`."""
    tf.config.optimizer.set_experimental_options(
        {"disable_meta_optimizer": True}
    )
    cpus = tf.config.list_physical_devices("CPU")
    one = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(cpus[0], [one, one])
    found = {name: difference(name) for name in OPTIONS}
    for jit_compile in (False, True):
        compiled = "jit" if jit_compile else "function"
        found[f"dense {compiled}"] = nested(
            lambda: keras.layers.Dense(4), jit_compile
        )
        found[f"mixture {compiled}"] = nested(
            lambda: MoEBlock(2, 4), jit_compile
        )
    path = pathlib.Path(folder) / "found.json"
    path.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main(sys.argv[1])
