"""Define a small training run that the backup tests stop and resume."""

import keras
import numpy as np
from backend import to_numpy
from keras import layers

from keras_moe.distribution.backup import generations, state

EPOCHS, BATCHES, BATCH = 3, 4, 8


class Stopped(Exception):
    pass


class StopAfter(keras.callbacks.Callback):
    """Stops the training with an exception.

    For the callbacks before it, this is the same as a kill.
    """

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise Stopped


class Shuffled(keras.utils.PyDataset):
    """A data set that draws a new order in each epoch."""

    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y
        self.order = np.arange(len(x))

    def __len__(self):
        return BATCHES

    def on_epoch_begin(self):
        self.order = np.random.permutation(len(self.x))

    def __getitem__(self, index):
        rows = self.order[index * BATCH : (index + 1) * BATCH]
        return self.x[rows], self.y[rows]


def make_data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCHES * BATCH, 4)).astype("float32")
    return x, x[:, :1] * x[:, 1:2]


def make_model(width=6, optimizer=None, name="model", **compile_arguments):
    """Return a model that draws its weights and its dropout masks."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    x = layers.Dropout(0.3)(layers.Dense(width, "tanh")(inputs))
    model = keras.Model(inputs, layers.Dense(1)(x), name=name)
    optimizer = optimizer or keras.optimizers.Adam(0.03)
    model.compile(optimizer, "mse", metrics=["mae"], **compile_arguments)
    return model


def fit(*callbacks, model=None, data=None, epochs=EPOCHS, **arguments):
    model = model or make_model()
    x, y = make_data()
    arguments = arguments if data else {"y": y, "batch_size": BATCH}
    history = model.fit(
        data or x, epochs=epochs, verbose=0, callbacks=callbacks, **arguments
    )
    return model, history.history


def weights_of(model):
    return [to_numpy(v.value) for v in state.variables_of(model)]


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def two_generations(folder):
    def fill(folder):
        for name in ("arrays.npz", "process-0.npz"):
            (folder / name).write_bytes(bytes(range(256)) * 2)
        return {"epoch": 1}

    return [generations.write(folder, fill, keep=2) for _ in range(2)]
