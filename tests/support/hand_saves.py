"""Make a small backup without training.

The hooks of `BackupAndResume` are called in the order in which `fit` calls
them. The "training" of an epoch writes the epoch's number into the weights, so
that the weights identify the save from which they were loaded.
"""

import functools

import keras
import numpy as np

from keras_moe.distribution.backup import BackupAndResume, choosing, generations
from keras_moe.distribution.backup.processes import processes_of


def make_model():
    """Return a model whose two weights hold the number of the last epoch."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(3)])
    model.compile("sgd", "mse")
    set_epoch(model, -1)
    return model


def set_epoch(model, epoch):
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, epoch, "float32"))


def epoch_of(model):
    """Return the number that all weights hold."""
    found = {
        float(number)
        for variable in model.trainable_variables
        for number in np.ravel(keras.ops.convert_to_numpy(variable.value))
    }
    assert len(found) == 1, found
    return int(found.pop())


def begin(folder, model=None):
    """Return the callback after `on_train_begin`, which loads a save."""
    callback = BackupAndResume(folder)
    callback.set_params({"epochs": 100, "steps": 4})
    callback.set_model(model or make_model())
    callback.model.history = keras.callbacks.History()
    callback.on_train_begin()
    return callback


def train_epoch(callback, epoch):
    """Train an epoch and save it."""
    callback.on_epoch_begin(epoch)
    set_epoch(callback.model, epoch)
    callback.on_epoch_end(epoch, {"loss": 0.5})


def make_backup(folder, epochs):
    """Save a number of epochs; return the callback."""
    callback = begin(folder)
    for epoch in range(epochs):
        train_epoch(callback, epoch)
    return callback


def whole_names(folder):
    """Return the saves' names; assert that the folder has only whole saves."""
    saves = generations.generations(folder)
    for generation in saves:
        generations.read_manifest(generation)
    assert sorted(folder.iterdir()) == saves[::-1]
    return [generation.name for generation in saves]


@functools.cache
def alone():
    """Return the processes of a training run in this process alone."""
    return processes_of(make_model())


def choose(folder):
    """Return the newest whole save's name or None, and its manifest."""
    generation, manifest = choosing.choose(folder, alone())
    return generation and generation.name, manifest
