"""Define models that hide weights from training, and train parts of them.

Every case trains equally on one process and on two processes that have half of
each batch.
"""

import keras
import numpy as np

import keras_moe
from keras_moe.compress import Distiller

LENGTH, WIDTH, OUTPUTS, BATCH = 6, 16, 4, 8


def make_data():
    """Return `(16, S, D)` and `(16, S, C)`, two steps of BATCH examples."""
    shape = (2 * BATCH, LENGTH, WIDTH)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    return x, x[..., :OUTPUTS]


def mixture():
    inputs = keras.Input((LENGTH, WIDTH))
    block = keras_moe.MoEBlock(4, 8, load_balancing="global_batch")
    return keras.Model(
        inputs, keras.layers.Dense(OUTPUTS)(inputs + block(inputs))
    )


def dense():
    inputs = keras.Input((LENGTH, WIDTH))
    return keras.Model(inputs, keras.layers.Dense(OUTPUTS)(inputs))


def ensemble(method, models=(mixture, dense), **options):
    members = [make() for make in models]
    return keras_moe.Ensemble(members, method, regression=True, **options)


class OnlyHead(keras.Model):
    """A model that trains only its last layer, by its own properties."""

    @property
    def trainable_variables(self):
        return self.layers[-1].trainable_variables

    @property
    def trainable_weights(self):
        return self.layers[-1].trainable_weights


def only_head():
    inputs = keras.Input((LENGTH, WIDTH))
    x = keras.layers.Dense(WIDTH)(inputs)
    return OnlyHead(inputs, keras.layers.Dense(OUTPUTS)(x))


def distiller():
    model = Distiller(mixture(), dense())
    model(make_data()[0])
    return model


# The function that makes each model, and the method that trains it.
CASES = {
    "weighted": (lambda: ensemble("weighted"), "fit"),
    "stacking": (lambda: ensemble("stacking"), "fit"),
    "fit_members": (lambda: ensemble("weighted"), "fit_members"),
    "snapshot": (
        lambda: ensemble("snapshot", (mixture,), num_snapshots=2),
        "fit",
    ),
    "together": (lambda: ensemble("weighted", train_members=True), "fit"),
    "distiller": (distiller, "fit"),
    "own class": (only_head, "fit"),
}


def train(name, rows, batch_size, wrap):
    """Return the losses of each training run of a case, two epochs each.

    `fit` follows `fit_members`, so that its losses depend on the members'
    weights.
    """
    make, method = CASES[name]
    keras.utils.set_random_seed(1)
    model = wrap(make())
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x, y = (array[rows] for array in make_data())
    options = {"epochs": 2, "shuffle": False, "verbose": 0}
    options["batch_size"] = batch_size
    histories = []
    if method == "fit_members":
        histories += model.fit_members(x, y, **options)
    histories.append(model.fit(x, y, **options))
    return np.array([history.history["loss"] for history in histories])
