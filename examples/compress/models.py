"""Train a MoE, make smaller versions of it, and train a student."""

import keras
import numpy as np
from keras import layers
from sklearn.model_selection import train_test_split

import keras_moe
from keras_moe import compress
from shared import digits as base

FINE_TUNING_RATE = 1e-3
NUM_IMAGES = 1437  # unshifted training images, which come first in the data
STUDENT_IMAGES = 144  # a tenth of the training images
STUDENT_DIM = 24
STUDENT_BATCH = 48
STUDENT_RATE = 3e-3
TEMPERATURE = 4.0
ALPHA = 0.9


def train_moe(data, epochs, seed):
    """Return the quickstart's MoE, trained as in the quickstart."""
    keras.utils.set_random_seed(seed)
    model = base.build_model("moe")
    steps = epochs * -(-len(data[0]) // base.BATCH_SIZE)
    compiled(model, base.learning_rate(steps)).fit(
        *data, batch_size=base.BATCH_SIZE, epochs=epochs, verbose=0
    )
    return model


def accuracy_of(model, data):
    """Return the share of correct predictions."""
    answers = model.predict(data[0], 360, verbose=0).argmax(-1)
    return float(np.mean(answers == data[1]))


def compiled(model, rate):
    """Compile a classifier of probabilities, and return it."""
    model.compile(
        keras.optimizers.Adam(rate),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    return model


def smaller_models(model, images):
    """Yield a name and a smaller model for each method."""
    yield "pruned by load", compress.prune_experts(model, keep=0.5)
    yield (
        "pruned by saliency",
        compress.prune_experts(model, 0.5, by="saliency", data=images),
    )
    yield (
        "pruned by weight",
        compress.prune_experts(model, 0.5, by="weight"),
    )
    yield "merged", compress.merge_experts(model, 0.5, data=images)
    yield (
        "half the hidden units",
        compress.prune_weights(model, 0.5, "structured"),
    )
    yield "half the weights zero", compress.prune_weights(model, 0.5)
    yield "dense, average", compress.to_dense(model, data=images)
    yield "dense, by load", compress.to_dense(model, "load", data=images)


def fine_tune(model, data, seed):
    """Train for one epoch with a learning rate that falls to 0."""
    keras.utils.set_random_seed(seed)
    steps = -(-len(data[0]) // base.BATCH_SIZE)
    rate = keras.optimizers.schedules.CosineDecay(FINE_TUNING_RATE, steps)
    compiled(model, rate).fit(*data, batch_size=base.BATCH_SIZE, verbose=0)
    return model


def zeros_of(model):
    """Return the number of zeros in the kernels of the experts."""
    kernels = [
        weight
        for layer in model._flatten_layers()
        if isinstance(layer, keras_moe.Expert)
        for weight in layer.trainable_weights
        if "kernel" in weight.name
    ]
    arrays = [keras.ops.convert_to_numpy(weight.value) for weight in kernels]
    return sum(int(np.sum(array == 0)) for array in arrays)


def count_weights(model):
    """Return the number of trainable parameters of a model."""
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


def student_images(data, seed):
    """Split the unshifted training images into a tenth and the others."""
    number = NUM_IMAGES
    images, labels = data[0][:number], data[1][:number]
    chosen, rest = train_test_split(
        np.arange(number),
        train_size=STUDENT_IMAGES,
        stratify=labels,
        random_state=seed,
    )
    return (images[chosen], labels[chosen]), (images[rest], labels[rest])


def build_student():
    """Return a dense classifier that is a fraction of the MoE's size."""
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(STUDENT_DIM, 2, strides=2, name="patches")(inputs)
    x = layers.Reshape((base.NUM_TOKENS, STUDENT_DIM))(x)
    x = base.PositionEmbedding(name="positions")(x)
    x = keras_moe.TransformerEncoderBlock(
        2, keras_moe.Expert(2 * STUDENT_DIM), dropout=base.DROPOUT
    )(x)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    x = layers.GlobalAveragePooling1D()(x)
    outputs = layers.Dense(base.NUM_CLASSES, activation="softmax")(x)
    return keras.Model(inputs, outputs, name="student")


def train_student(data, steps, seed, teacher=None):
    """Train a student; with a teacher, also on its soft labels.

    The initial weights, images, labels, steps, and optimizer are the same with
    and without a teacher; only the loss differs.
    """
    keras.utils.set_random_seed(seed)
    student = build_student()
    learner = student
    if teacher is not None:
        learner = compress.distill(
            student, teacher, temperature=TEMPERATURE, alpha=ALPHA
        )
    compiled(learner, base.learning_rate(steps, STUDENT_RATE))
    epochs = steps * STUDENT_BATCH // len(data[0])
    learner.fit(*data, batch_size=STUDENT_BATCH, epochs=epochs, verbose=0)
    return student
