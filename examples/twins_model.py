"""What `twins.py` does with a model: trains it, saves and exports it."""

import shutil
import tempfile
from pathlib import Path

import keras
import numpy as np
import quickstart
from quickstart_model import learning_rate
from quickstart_report import compare, judge

TOLERANCES = {"reloaded": 0.0, "saved_model": 1e-4}


def fit(model, data, batch_size, epochs, peak, shuffle=True):
    """Trains logits on ids; `data` is `(inputs, targets, weights)`.

    AdamW; the loss is the mean cross-entropy, in nats, of the targets whose
    weight is 1. The learning rate rises to `peak` and falls to 0.
    """
    inputs, targets, weights = data
    steps = epochs * -(-len(targets) // batch_size)
    model.compile(
        keras.optimizers.AdamW(
            learning_rate(steps, peak), weight_decay=0.01, clipnorm=1.0
        ),
        keras.losses.SparseCategoricalCrossentropy(
            from_logits=True, reduction="mean_with_sample_weight"
        ),
    )
    model.fit(
        inputs,
        targets,
        sample_weight=weights,
        batch_size=batch_size,
        epochs=epochs,
        shuffle=shuffle,
        verbose=0,
    )


def check(sample, model, folder):
    """Loads what is saved and runs what is exported; returns differences.

    The SavedModel is made and run by TensorFlow, each in its own process.
    """
    path, saved_model = folder / "moe.keras", folder / "saved_model"
    model.save(path)
    expected = outputs(model, sample)
    again = keras.models.load_model(path, compile=False)
    largest = float(np.max(np.abs(outputs(again, sample) - expected)))
    shutil.rmtree(saved_model, ignore_errors=True)
    quickstart.work("tensorflow", "export", path, saved_model)
    with tempfile.TemporaryDirectory() as temporary:
        inputs, out = (Path(temporary) / n for n in ("in.npz", "out.npz"))
        named = sample if isinstance(sample, dict) else {"inputs": sample}
        np.savez(inputs, **named)
        quickstart.work("tensorflow", "saved_model", saved_model, inputs, out)
        exported = compare(expected, out, TOLERANCES["saved_model"])
    reloaded = judge(largest, TOLERANCES["reloaded"])
    return {"reloaded": reloaded, "saved_model": exported}


def outputs(model, inputs):
    """Returns what a model makes of inputs, outside training."""
    return keras.ops.convert_to_numpy(model(inputs, training=False))
