"""Build the small classifier that `balance.py` trains.

B images, S patches per image, C pixels per patch, D hidden_dim.
"""

import keras
from keras import layers, ops

import keras_moe
from benchmarks.quality.balance_setups import SETTINGS


class Positions(layers.Layer):
    """Adds a learned vector to each position of a sequence."""

    def build(self, input_shape):
        """Create the vectors `(S, D)`."""
        self.vectors = self.add_weight(
            shape=input_shape[1:],
            initializer=keras.initializers.RandomNormal(
                stddev=SETTINGS["position_std"]
            ),
            name="vectors",
        )

    def call(self, inputs):
        """Return `(B, S, D)`."""
        return ops.add(inputs, self.vectors)


def build(setup, tokens_shape, seed):
    """Return a classifier, and a model that returns its expert indices.

    Patches `(B, S, C)` and ids `(B, S)` go through an embedding, MoE blocks
    with residual connections, the mean over S, and a Dense layer.
    """
    tokens = keras.Input(tokens_shape)
    ids = keras.Input(tokens_shape[:1], dtype="int32")
    x = Positions()(_embedding()(tokens))
    indices = []
    for i in range(SETTINGS["num_blocks"]):
        change, assignment = _block(setup, seed * SETTINGS["num_blocks"] + i)(
            layers.RMSNormalization()(x),
            return_assignment=True,
            **({"router_inputs": ids} if setup.needs_ids else {}),
        )
        x = layers.Add()([x, change])
        indices.append(assignment.expert_index)
    x = layers.GlobalAveragePooling1D()(x)
    logits = layers.Dense(SETTINGS["num_classes"])(x)
    inputs = [tokens, ids]
    return keras.Model(inputs, logits), keras.Model(inputs, indices)


def _embedding():
    """Return a Dense layer whose bias is a direction common to all tokens."""
    shared = keras.initializers.RandomNormal(stddev=SETTINGS["shared_std"])
    return layers.Dense(SETTINGS["hidden_dim"], bias_initializer=shared)


def _block(setup, seed):
    arguments = dict(setup.arguments)
    if not setup.needs_ids:
        arguments["kernel_initializer"] = keras.initializers.RandomNormal(
            stddev=SETTINGS["router_kernel_std"], seed=seed
        )
    router_class = getattr(keras_moe, setup.router)
    return keras_moe.MoEBlock(
        SETTINGS["num_experts"],
        SETTINGS["intermediate_dim"],
        router=router_class(SETTINGS["num_experts"], seed=seed, **arguments),
        **dict(setup.block),
    )
