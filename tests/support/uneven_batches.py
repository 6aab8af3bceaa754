"""Train in two processes, of which the second may have one batch more.

Run `keras-moe launch uneven_batches.py KIND`. KIND is "arrays", "generator",
"epochs", or "even". If process 0 or 1 should end before its first `fit`, KIND
is "exits 0", "exits 1", "raises 0", or "raises 1".
"""

import sys

import keras
import numpy as np

import keras_moe
from keras_moe import distribution

D, LENGTH, BATCH = 8, 6, 4


def make_model():
    """Build a small compiled mixture."""
    inputs = keras.Input((LENGTH, D))
    outputs = keras.layers.Dense(1)(keras_moe.MoEBlock(4, D)(inputs))
    model = keras.Model(inputs, outputs)
    model.compile("sgd", "mse", metrics=["mae"])
    return model


def make_parallel_model():
    """Build the model as each backend trains it in several processes."""
    backend = keras.backend.backend()
    if backend == "torch":
        model = distribution.shard_experts(make_model())
        return distribution.data_parallel(model)
    if backend == "jax":
        layout = distribution.expert_parallel()
        layout.auto_shard_dataset = False
        keras.distribution.set_distribution(layout)
        return make_model()
    import tensorflow as tf

    with tf.distribute.MultiWorkerMirroredStrategy().scope():
        return distribution.data_parallel(make_model())


def batches(x, y):
    """Yield batches, so that their number is unknown in advance."""
    for start in range(0, len(x), BATCH):
        yield x[start : start + BATCH], y[start : start + BATCH]


def dataset(x, y, kind):
    """Return a tf.data.Dataset of this worker's own batches."""
    import tensorflow as tf

    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = (
        tf.data.experimental.AutoShardPolicy.OFF
    )
    found = tf.data.Dataset.from_tensor_slices((x, y))
    found = found.batch(BATCH, drop_remainder=True)
    if kind == "generator":  # of unknown length
        found = found.filter(lambda x, y: tf.reduce_sum(x) < 1e6)
    return found.with_options(options)


def main(kind):
    """Train for one epoch; process 1 trains for two if KIND is "epochs"."""
    distribution.initialize()
    index = distribution.process_index()
    model = make_parallel_model()
    if kind == f"exits {index}":
        sys.exit()
    if kind == f"raises {index}":
        raise ValueError("before the first fit")
    count = BATCH * (3 if kind in ("even", "epochs") else 3 + index)
    epochs = 1 + index * (kind == "epochs")
    rng = np.random.default_rng(index)
    x = rng.normal(size=(count, LENGTH, D)).astype("float32")
    y = x[:, :, :1]
    if keras.backend.backend() == "tensorflow":
        model.fit(dataset(x, y, kind), epochs=epochs, verbose=0)
    elif kind == "generator":
        model.fit(batches(x, y), verbose=0)
    else:
        model.fit(x, y, batch_size=BATCH, epochs=epochs, verbose=0)
    print("trained")


if __name__ == "__main__":
    main(sys.argv[1])
