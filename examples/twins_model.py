"""What `twins.py` does with a model: trains it, saves and exports it."""

import keras
import numpy as np
import quickstart
from quickstart_model import learning_rate
from quickstart_report import judge

RELOADED_TOLERANCE = 0.0


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
    """Loads what is saved and runs what is exported; returns differences."""
    model.save(folder / "moe.keras")
    expected = outputs(model, sample)
    again = keras.models.load_model(folder / "moe.keras", compile=False)
    largest = float(np.max(np.abs(outputs(again, sample) - expected)))
    return {
        "reloaded": judge(largest, RELOADED_TOLERANCE),
        "saved_model": quickstart.export(
            model, folder / "saved_model", "tf_saved_model", sample
        ),
    }


def outputs(model, inputs):
    """Returns what a model makes of inputs, outside training."""
    return keras.ops.convert_to_numpy(model(inputs, training=False))
