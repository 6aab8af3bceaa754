"""Load digits, and build and train a MoE transformer or its dense twin.

N images, S tokens per image, D hidden_dim, F intermediate_dim, E experts,
K top_k.
"""

import keras
import numpy as np
from keras import layers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import keras_moe
from keras_moe.callbacks import RoutingMetrics, find_blocks

NUM_CLASSES = 10
NUM_TOKENS = 16  # 8 x 8 pixels in patches of 2 x 2
HIDDEN_DIM = 48
NUM_HEADS = 4
NUM_BLOCKS = 2
NUM_EXPERTS = 8
INTERMEDIATE_DIM = 48
TOP_K = 2
DROPOUT = 0.1
LEARNING_RATE = 3e-3
BATCH_SIZE = 128
SPLIT_SEED = 0  # the held-out fifth does not depend on the training seed

SHIFTS = [(dy, dx) for dy in (0, -1, 1) for dx in (0, -1, 1)]


@keras.saving.register_keras_serializable(package="quickstart")
class PositionEmbedding(layers.Layer):
    """Adds a learned vector to each of S tokens `(N, S, D)`."""

    def build(self, input_shape):
        """Create the weight `(S, D)`."""
        self.position = self.add_weight(
            name="position",
            shape=input_shape[1:],
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )

    def call(self, inputs):
        """Return the inputs with their positions."""
        return inputs + self.position


def load_data(shifts=SHIFTS):
    """Return `(train_images, train_labels), (test_images, test_labels)`.

    Images are float32 `(N, 8, 8, 1)` in 0 ... 1. Each training image occurs
    once per shift; the held-out fifth is not shifted.
    """
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).reshape(-1, 8, 8, 1).astype("float32")
    train_x, test_x, train_y, test_y = train_test_split(
        images,
        labels,
        test_size=0.2,
        stratify=labels,
        random_state=SPLIT_SEED,
    )
    train_x = np.concatenate([shift(train_x, *s) for s in shifts])
    return (train_x, np.tile(train_y, len(shifts))), (test_x, test_y)


def shift(images, down, right):
    """Shift images by -1, 0, or 1 pixels; new pixels are blank."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    return padded[:, 1 - down : 9 - down, 1 - right : 9 - right]


def build_model(kind):
    """Return the classifier; only the kind, "moe" or "dense", differs."""
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(HIDDEN_DIM // 2, 3, padding="same", activation="relu")(
        inputs
    )
    x = layers.Conv2D(HIDDEN_DIM, 2, strides=2, name="patches")(x)
    x = layers.Reshape((NUM_TOKENS, HIDDEN_DIM))(x)
    x = PositionEmbedding(name="positions")(x)
    for number in range(1, NUM_BLOCKS + 1):
        x = keras_moe.TransformerEncoderBlock(
            NUM_HEADS,
            moe=feed_forward(kind),
            dropout=DROPOUT,
            name=f"block_{number}",
        )(x)
    x = layers.LayerNormalization(epsilon=1e-6)(x)
    x = layers.GlobalAveragePooling1D()(x)
    outputs = layers.Dense(NUM_CLASSES, activation="softmax")(x)
    return keras.Model(inputs, outputs, name=kind)


def feed_forward(kind):
    """Return E experts of width F, or one expert of width K * F."""
    if kind == "dense":
        return keras_moe.Expert(TOP_K * INTERMEDIATE_DIM)
    return keras_moe.MoEBlock(
        NUM_EXPERTS, INTERMEDIATE_DIM, top_k=TOP_K, name="moe"
    )


def train(kind, data, epochs, seed):
    """Build and train a model; both kinds are trained in the same way."""
    keras.utils.set_random_seed(seed)
    model = build_model(kind)
    steps = epochs * -(-len(data[0]) // BATCH_SIZE)
    model.compile(
        keras.optimizers.Adam(learning_rate(steps)),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    callbacks = [RoutingMetrics()] if kind == "moe" else []
    model.fit(*data, batch_size=BATCH_SIZE, epochs=epochs, callbacks=callbacks)
    return model


def learning_rate(steps, peak=LEARNING_RATE):
    """Return a cosine schedule to 0 with a warm-up of a tenth of the steps."""
    warmup = max(1, steps // 10)
    return keras.optimizers.schedules.CosineDecay(
        0.0,
        max(1, steps - warmup),
        warmup_target=peak,
        warmup_steps=warmup,
    )


def count_parameters(model):
    """Return the trainable parameters, in total and active per token."""

    def size(layer):
        return sum(int(np.prod(w.shape)) for w in layer.trainable_weights)

    idle = 0
    if model.name == "moe":
        for block in find_blocks(model):
            experts = size(block.experts)
            idle += experts - experts * block.router.top_k // block.num_experts
    return {"total": size(model), "active": size(model) - idle}


def route(model, images, labels):
    """Count the routed pairs of each digit per expert.

    This runs every block on the output of the layer before it.

    Returns:
        A dict from the block's name to int `(10, E)`.
    """
    counts = {}
    for layer in model.layers:
        if not isinstance(layer, keras_moe.TransformerEncoderBlock):
            continue
        before = keras.Model(model.input, layer.input)
        tokens = before.predict(images, verbose=0)
        _, assignment = layer(tokens, return_assignment=True)
        counts[layer.name] = count_pairs(assignment, labels)
    return counts


def count_pairs(assignment, labels):
    """Return the pairs of each digit (rows) and expert (columns)."""
    expert = keras.ops.convert_to_numpy(assignment.expert_index)
    token = keras.ops.convert_to_numpy(assignment.token_index)
    digit = labels[token // NUM_TOKENS]
    table = np.zeros((NUM_CLASSES, NUM_EXPERTS + 1), "int64")
    np.add.at(table, (digit, expert), 1)
    return table[:, :NUM_EXPERTS]
