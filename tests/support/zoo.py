"""Define every public layer for the contract test and for other backends."""

import keras
from keras import ops

import keras_moe

WIDTH = 8


@keras.saving.register_keras_serializable(package="tests")
class Combined(keras.layers.Layer):
    """Makes a layer from a router, to test it like the other layers.

    Each token is multiplied by 1 plus the sum, over its pairs, of the combine
    weight times the expert's number.
    """

    def __init__(self, router, **kwargs):
        super().__init__(**kwargs)
        self.router = router

    def build(self, input_shape):
        if not self.router.built:  # a deserialized router is built
            self.router.build(input_shape)

    def call(self, x, training=None):
        assignment = self.router(x, training=training)
        number = ops.cast(assignment.expert_index, "float32") + 1
        pairs = ops.reshape(
            assignment.combine_weights * number,
            (-1, self.router.pairs_per_token),
        )
        scale = ops.reshape(ops.sum(pairs, axis=-1), ops.shape(x)[:-1])
        return x * ops.cast(1 + scale[..., None], x.dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        router = keras.saving.serialize_keras_object(self.router)
        return {**super().get_config(), "router": router}

    @classmethod
    def from_config(cls, config):
        router = keras.saving.deserialize_keras_object(config.pop("router"))
        return cls(router=router, **config)


@keras.saving.register_keras_serializable(package="tests")
class Averaged(keras.layers.Layer):
    """Averages the outputs of a layer that has several."""

    def __init__(self, layer, **kwargs):
        super().__init__(**kwargs)
        self.layer = layer

    def build(self, input_shape):
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, x, training=None):
        return ops.mean(ops.stack(self.layer(x, training=training)), axis=0)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        layer = keras.saving.serialize_keras_object(self.layer)
        return {**super().get_config(), "layer": layer}

    @classmethod
    def from_config(cls, config):
        layer = keras.saving.deserialize_keras_object(config.pop("layer"))
        return cls(layer=layer, **config)


LAYERS = {
    "Router": lambda **kw: Combined(keras_moe.Router(5, use_bias=True, **kw)),
    "Router sigmoid": lambda **kw: Combined(
        keras_moe.Router(5, 3, "sigmoid", normalize_weights=False, **kw)
    ),
    "Expert": lambda **kw: keras_moe.Expert(12, **kw),
    "Expert gated": lambda **kw: keras_moe.Expert(
        12, activation="silu", gated=True, dropout=0.1, **kw
    ),
    "MoEBlock": lambda **kw: keras_moe.MoEBlock(5, 12, **kw),
    "MoEBlock full": lambda **kw: keras_moe.MoEBlock(
        5,
        12,
        top_k=1,
        capacity_factor=1.5,
        eval_capacity_factor=2.0,
        priority="score",
        activation=keras_moe.ClippedSwiGLU(),
        gated=True,
        shared_expert_dim=6,
        router_z_weight=0.001,
        jitter=0.01,
        dropout=0.1,
        kernel_regularizer="l2",
        **kw,
    ),
    "MoEBlock of layers": lambda **kw: keras_moe.MoEBlock(
        5,
        router=keras_moe.Router(5, 3, "topk_softmax", **kw),
        experts=keras_moe.Expert(12, 5, use_bias=False, **kw),
        shared_expert_dim=6,
        shared_expert_gate=True,
        weights_on="inputs",
        expert_capacity=2,
        compute_padding=True,
        **kw,
    ),
    "MoEBlock of null experts": lambda **kw: keras_moe.MoEBlock(
        5,
        12,
        router=keras_moe.Router(
            5, 2, num_null_experts=3, expert_bias=True, **kw
        ),
        **kw,
    ),
    "SoftMoE": lambda **kw: keras_moe.SoftMoE(3, 12, slots_per_expert=2, **kw),
    "PLE": lambda **kw: Averaged(
        keras_moe.PLE(2, 1, 2, 12, activation="silu", gated=True, **kw), **kw
    ),
    "MoEBlock of unlike experts": lambda **kw: keras_moe.MoEBlock(
        2,
        top_k=1,
        experts=[
            keras.layers.Conv1D(WIDTH, 3, padding="same", **kw),
            keras.layers.Dense(WIDTH, "tanh", **kw),
        ],
        level="example",
        **kw,
    ),
    "MixtureOfModels": lambda **kw: keras_moe.MixtureOfModels(
        [
            keras.layers.Conv1D(WIDTH, 3, padding="same", **kw),
            keras_moe.Expert(12, **kw),
        ],
        top_k=1,
        capacity_factor=2.0,
        **kw,
    ),
    "TransformerEncoderBlock": lambda **kw: keras_moe.TransformerEncoderBlock(
        2, keras_moe.MoEBlock(5, 12, **kw), **kw
    ),
    "TransformerEncoderBlock dense": lambda **kw: (
        keras_moe.TransformerEncoderBlock(
            2, keras_moe.Expert(12, **kw), dropout=0.1, **kw
        )
    ),
    "TransformerDecoderBlock": lambda **kw: keras_moe.TransformerDecoderBlock(
        2, keras_moe.MoEBlock(5, 12, **kw), num_key_value_heads=1, **kw
    ),
}


def model_of(layer, length=None):
    """Return a small model of a layer, from `(B, S, WIDTH)` to `(B, 1)`."""
    inputs = keras.Input((length, WIDTH))
    x = layer(keras.layers.Dense(WIDTH)(inputs))
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(x))
