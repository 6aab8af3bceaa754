"""What the examples share once Keras runs: a schedule, a count, a fit."""

import keras
import numpy as np

from keras_moe.callbacks import find_blocks


def learning_rate(steps, peak):
    """Warms up for a tenth of the steps, then falls along a cosine to 0."""
    warmup = max(1, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, steps - warmup),
        warmup_target=peak,
        warmup_steps=warmup,
    )


def count_parameters(model, kind):
    """Returns trainable parameters: all, and those one token meets.

    Args:
        model: a built model.
        kind: "moe" or "dense".
    """
    total = _size(model)
    idle = 0
    for block in find_blocks(model) if kind == "moe" else ():
        experts = _size(block.experts)
        idle += experts - experts * block.router.top_k // block.num_experts
    return {"total": total, "active": total - idle}


def _size(layer):
    return sum(int(np.prod(w.shape)) for w in layer.trainable_weights)


def fit(model, data, batch_size, epochs, peak, shuffle=True):
    """Trains logits on ids; `data` is `(inputs, targets, weights)`.

    AdamW; the loss is the mean cross-entropy, in nats, of the targets whose
    weight is 1.
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
