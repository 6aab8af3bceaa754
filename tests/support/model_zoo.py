"""Define a small model of every kind, and a batch to train it on."""

import keras
import numpy as np
from backend import to_numpy
from keras import ops

from keras_moe import kernels, models

V, S = 9, 6
COMMON = {
    "num_layers": 1,
    "hidden_dim": 8,
    "num_heads": 2,
    "intermediate_dim": 6,
    "num_experts": 3,
}
TEXT = {"vocabulary_size": V, "max_length": 12}
MODELS = {
    "MoEClassifier": lambda **kw: models.MoEClassifier(
        num_classes=3, **TEXT, **COMMON | {"positions": "learned"} | kw
    ),
    "MoETagger": lambda **kw: models.MoETagger(
        num_tags=4, **TEXT, **COMMON | kw
    ),
    "MoELanguageModel": lambda **kw: models.MoELanguageModel(
        **TEXT, **COMMON | {"num_key_value_heads": 1} | kw
    ),
    "MoESeq2Seq": lambda **kw: models.MoESeq2Seq(**TEXT, **COMMON | kw),
    "MoEVisionClassifier": lambda **kw: models.MoEVisionClassifier(
        (4, 4, 1), 2, num_classes=3, **COMMON | kw
    ),
}


def batch_of(name, rng, samples=16):
    """Return a batch to learn from; half of its sequences are padded."""
    if name == "MoEVisionClassifier":
        labels = np.arange(samples) % 3
        images = rng.random((samples, 4, 4, 1)) + labels[:, None, None, None]
        return images.astype("float32"), labels
    ids = rng.integers(1, V, (samples, S)).astype("int32")
    ids[: samples // 2, -2:] = 0
    if name == "MoEClassifier":
        return ids, ids[:, 0] % 3
    if name == "MoETagger":
        return ids, ids % 4
    if name == "MoELanguageModel":
        return ids, np.where(ids == 0, 0, ids % (V - 1) + 1)
    target = np.where(ids == 0, 0, ids % (V - 1) + 1)
    started = np.pad(target[:, :-1], [(0, 0), (1, 0)], constant_values=1)
    started[target == 0] = 0
    return {"encoder_token_ids": ids, "decoder_token_ids": started}, target


def compile_model(model, learning_rate=0.05):
    model.compile(
        keras.optimizers.Adam(learning_rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def compiled(layer, **options):
    """Return the layer as one program, which is faster on JAX."""
    return kernels.compiled(
        lambda *args: layer(*args, **options), layer.variables
    )


def outputs_of(model, inputs):
    """Return the outputs of a model as NumPy arrays."""
    inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
    return to_numpy(compiled(model, training=False)(inputs))


def lively(model, scale=0.7):
    """Assign large weights, so that the best token differs between steps."""
    rng = np.random.default_rng(3)
    for weight in model.trainable_weights:
        if len(weight.shape) > 1:
            weight.assign(rng.normal(size=weight.shape) * scale)
    return model
