"""Define the model and the data of every distribution test.

B batch, S sequence, D hidden_dim, F intermediate_dim, E experts, K top_k.

Weights and data come from NumPy, so that every process of every backend
starts from the same numbers. B, D, F, and E are divisible by eight.
"""

import keras
import numpy as np

import keras_moe

BATCH, LENGTH, WIDTH, INNER = 16, 4, 16, 32  # B, S, D, F
EXPERTS, TOP_K, CLASSES = 8, 2, 3
STEPS = 5


def make_model(seed=0, compiled=True, **block_arguments):
    """Return a classifier from `(B, S, D)` to `(B, CLASSES)`.

    The model has one dropless block with everything that replicas must agree
    on: the two losses, the expert bias, and the statistics. The optimizer is
    SGD with momentum, because Adam divides a gradient of almost zero by itself
    and would amplify rounding.

    Args:
        seed: Integer. Seed of the weights.
        compiled: Boolean. Whether to compile the model.
        block_arguments: Arguments of `MoEBlock` that replace the ones here.
    """
    arguments = {
        "router": keras_moe.Router(
            EXPERTS,
            TOP_K,
            expert_bias=True,
            expert_bias_step=0.01,
            name="router",
        ),
        "load_balancing": "global_batch",
        "load_balancing_weight": 0.01,
        "router_z_weight": 0.001,
        "name": "moe",
        **block_arguments,
    }
    inputs = keras.Input((LENGTH, WIDTH), name="tokens")
    x = keras.layers.Dense(WIDTH, "tanh", name="embed")(inputs)
    x = x + keras_moe.MoEBlock(EXPERTS, INNER, **arguments)(x)
    x = keras.layers.GlobalAveragePooling1D(name="pool")(x)
    outputs = keras.layers.Dense(CLASSES, name="head", dtype="float32")(x)
    model = keras.Model(inputs, outputs, name="classifier")
    set_weights(model, seed)
    if compiled:
        compile_model(model)
    return model


def compile_model(model, **kwargs):
    """Compile a model with SGD; `kwargs` are passed to `model.compile`."""
    model.compile(
        optimizer=keras.optimizers.SGD(0.1, momentum=0.9),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        **kwargs,
    )


def set_weights(model, seed=0):
    """Assign trainable weights drawn by NumPy, in the model's order."""
    rng = np.random.default_rng(seed)
    for weight in model.trainable_weights:
        scale = 1 / np.sqrt(weight.shape[-2]) if len(weight.shape) > 1 else 0.1
        weight.assign((scale * rng.normal(size=weight.shape)).astype("float32"))


def make_data(steps=STEPS, seed=1):
    """Return N = steps * BATCH examples: `(N, S, D)` floats, `(N,)` classes.

    The class of an example can be computed from it.
    """
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(steps * BATCH, LENGTH, WIDTH)) + 0.3
    y = np.argmax(x.mean(axis=1)[:, :CLASSES], axis=-1)
    return x.astype("float32"), y.astype("int32")


class StepLosses(keras.callbacks.Callback):
    """Collects `logs["loss"]` of each step, the mean of the epoch so far."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch, logs=None):
        self.losses.append(float(logs["loss"]))


def train(model, *data, **fit_arguments):
    """Train one epoch in order; return an array of the loss of each step."""
    steps = StepLosses()
    model.fit(
        *data,
        shuffle=False,
        verbose=0,
        callbacks=[steps],
        **fit_arguments,
    )
    return np.array(steps.losses)


def weights_of(model):
    """Return every weight by path, including the bias and the statistics.

    The states of seed generators are excluded, because the model draws no
    numbers.
    """
    return {
        weight.path: np.asarray(keras.ops.convert_to_numpy(weight.value))
        for weight in model.weights
        if "seed" not in weight.path
    }


def run_alone():
    """Train on one device; return the weights by path and `"losses"`."""
    model = make_model()
    x, y = make_data()
    losses = train(model, x, y, batch_size=BATCH)
    return {"losses": losses, **weights_of(model)}


def furthest(found, expected):
    """Return the largest difference between two results, and its name."""
    assert sorted(found) == sorted(expected), (sorted(found), sorted(expected))
    return max(
        (float(np.max(np.abs(found[name] - expected[name]))), name)
        for name in expected
    )
