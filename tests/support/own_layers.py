"""Define a layer and a model as users write them, and layers to put inside."""

import keras
from keras import layers, ops
from zoo import LAYERS, WIDTH, Averaged

import keras_moe
from keras_moe.layers.expert_layers import mask_for


class Residual(layers.Layer):
    """A layer that a user could write."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        self.supports_masking = True

    def build(self, input_shape):
        if not self.inner.built:
            self.inner.build(input_shape)

    def call(self, x, ids=None, mask=None, training=None):
        options = {} if ids is None else {"router_inputs": ids}
        options |= mask_for(self.inner, mask)
        return x + self.inner(x, training=training, **options)


def model_of(layer):
    inputs = keras.Input((None, WIDTH))
    return keras.Model(inputs, layer(inputs))


def quantized(mode):
    block = keras_moe.MoEBlock(5, 12)
    block.build((None, 3, WIDTH))
    block.experts.quantize(mode)
    return block


def pooled():
    shorten = layers.GlobalAveragePooling1D(keepdims=True)
    return keras.Sequential([shorten, layers.Dense(WIDTH)])


def expert_choice(num_experts):
    return keras_moe.ExpertChoiceRouter(num_experts, 1.5, bidirectional=True)


MORE_LAYERS = {
    "balanced by sequence": lambda: keras_moe.MoEBlock(
        5, 12, load_balancing="per_sequence", router_z_weight=0.1
    ),
    "balanced over replicas": lambda: keras_moe.MoEBlock(
        5, 12, load_balancing="global_batch"
    ),
    "capacity by score": lambda: keras_moe.MoEBlock(
        5, 12, 3, 1.25, eval_capacity_factor=0.5, priority="score"
    ),
    "one expert": lambda: keras_moe.MoEBlock(1, 12, top_k=1, remat=True),
    "examples": lambda: keras_moe.MoEBlock(4, 12, level="example"),
    "recurrent experts": lambda: keras_moe.MoEBlock(
        2,
        top_k=1,
        level="example",
        experts=[
            layers.GRU(WIDTH, return_sequences=True),
            layers.Bidirectional(layers.LSTM(4, return_sequences=True)),
        ],
    ),
    "any experts": lambda: keras_moe.MoEBlock(
        3,
        capacity_factor=1.0,
        experts=[
            layers.Dense(WIDTH),
            layers.Identity(),
            keras.Sequential(
                [layers.BatchNormalization(), layers.Dropout(0.1)]
            ),
        ],
    ),
    "one of any expert": lambda: keras_moe.MoEBlock(
        1, top_k=1, experts=[layers.Dense(WIDTH)]
    ),
    "any experts choose": lambda: keras_moe.MoEBlock(
        2,
        router=expert_choice(2),
        experts=[layers.Dense(WIDTH), layers.Dense(WIDTH)],
    ),
    "experts choose twice": lambda: keras_moe.MoEBlock(
        3, 12, eval_capacity_factor=0.5, router=expert_choice(3)
    ),
    "nested": lambda: keras_moe.MoEBlock(
        2,
        top_k=1,
        experts=[
            keras_moe.MoEBlock(3, 4),
            keras_moe.MoEBlock(2, 4, eval_capacity_factor=1.0),
        ],
    ),
    "HierarchicalMoE": lambda: keras_moe.HierarchicalMoE(3, 6, 12),
    "MultiGateMoE": lambda: Averaged(keras_moe.MultiGateMoE(2, 3, 12)),
    "int4": lambda: quantized("int4"),
    "every model": lambda: keras_moe.MixtureOfModels(
        [layers.Dense(WIDTH), layers.Conv1D(WIDTH, 3, padding="same")], top_k=2
    ),
    "models": lambda: keras_moe.MixtureOfModels(
        [model_of(layers.Dense(WIDTH)), model_of(layers.Dense(WIDTH))], top_k=1
    ),
    "models that pool": lambda: keras_moe.MixtureOfModels(
        [model_of(pooled()) for _ in range(3)], top_k=1
    ),
    "Ensemble": lambda: keras_moe.Ensemble(
        [model_of(keras_moe.MoEBlock(n, 4)) for n in (2, 3)],
        "soft_vote",
        from_logits=True,
    ),
}
EVERY_LAYER = {**LAYERS, **MORE_LAYERS}
# Keras warns that these models lose the mask of their inputs.
WITHOUT_MASK = ("models", "models that pool", "Ensemble")


class Subclassed(keras.Model):
    """A model that a user could write."""

    def __init__(self):
        super().__init__()
        self.block = keras_moe.MoEBlock(4, 8, capacity_factor=2.0)
        self.chosen = Residual(
            keras_moe.MoEBlock(4, 8, router=expert_choice(4))
        )
        self.head = layers.Dense(1)

    def call(self, x, training=None):
        x = self.chosen(self.block(x, training=training), training=training)
        return self.head(ops.mean(x, axis=1))
