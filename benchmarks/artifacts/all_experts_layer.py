"""Compute a block in its all-experts form, the baseline for artifacts.

Every expert computes every token, in products of stacked matrices, and a mask
of weights selects the outputs. KerasHub's blocks compute this, and so does an
exporter without support for sparsity.

D hidden_dim.
"""

import keras
from keras import ops

import keras_moe


@keras.saving.register_keras_serializable(package="benchmarks")
class AllExperts(keras.layers.Layer):
    """Computes the outputs of a `MoEBlock` of ungated experts with `top_k=1`.

    Args:
        block: `MoEBlock`. Its weights are shared.
    """

    def __init__(self, block, **kwargs):
        super().__init__(**kwargs)
        self.block = block

    def build(self, input_shape):
        if not self.block.built:
            self.block.build(input_shape)

    def call(self, inputs):
        experts, D = self.block.experts, inputs.shape[-1]
        tokens = ops.reshape(inputs, (-1, D))
        probs = self.block.router(tokens).router_probs
        best = ops.max(probs, axis=-1, keepdims=True)
        weights = ops.where(probs >= best, probs, ops.zeros_like(probs))
        stack = ops.tile(
            ops.expand_dims(tokens, 0), (self.block.num_experts, 1, 1)
        )
        hidden = experts.activation(
            ops.matmul(stack, experts.up_kernel)
            + ops.expand_dims(experts.up_bias, 1)
        )
        outputs = ops.matmul(hidden, experts.down_kernel)
        outputs = outputs + ops.expand_dims(experts.down_bias, 1)
        by_expert = ops.expand_dims(ops.transpose(weights), -1)
        return ops.reshape(
            ops.sum(outputs * by_expert, axis=0), ops.shape(inputs)
        )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        block = keras.saving.serialize_keras_object(self.block)
        return {**super().get_config(), "block": block}

    @classmethod
    def from_config(cls, config):
        config["block"] = keras.saving.deserialize_keras_object(config["block"])
        return cls(**config)


def models(num_experts, hidden_dim, intermediate_dim):
    """Return a model of one block, and a model of its all-experts form."""
    block = keras_moe.MoEBlock(num_experts, intermediate_dim, top_k=1)
    pair = []
    for layer in (block, AllExperts(block)):
        inputs = keras.Input((None, hidden_dim), name="tokens")
        pair.append(keras.Model(inputs, layer(inputs)))
    return pair
