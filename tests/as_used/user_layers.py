"""Define layers and models as users write them around a `MoEBlock`."""

import keras

from keras_moe import MoEBlock

D = 8


@keras.saving.register_keras_serializable(package="as_used")
class Residual(keras.layers.Layer):
    """A residual block that normalizes its inputs, as in transformers."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = keras.layers.LayerNormalization()
        self.block = MoEBlock(4, 12)

    def build(self, input_shape):
        self.norm.build(input_shape)
        self.block.build(input_shape)

    def call(self, x, training=None):
        return x + self.block(self.norm(x), training=training)


@keras.saving.register_keras_serializable(package="as_used")
class Subclassed(keras.Model):
    """A model that builds its block in `__init__` and pools in `call`."""

    def __init__(self, capacity_factor=None, **kwargs):
        super().__init__(**kwargs)
        self.capacity_factor = capacity_factor
        self.block = MoEBlock(4, 12, capacity_factor=capacity_factor)
        self.head = keras.layers.Dense(1)

    def build(self, input_shape):
        self.block.build(input_shape)
        self.head.build((input_shape[0], input_shape[-1]))

    def call(self, x, training=None):
        x = x + self.block(x, training=training)
        return self.head(keras.ops.mean(x, axis=1))

    def get_config(self):
        config = super().get_config()
        return {**config, "capacity_factor": self.capacity_factor}


class MixtureCell(keras.layers.Layer):
    """A recurrent cell whose new state is `tanh(x + block(state))`."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.state_size = self.output_size = D
        self.block = MoEBlock(4, 12)

    def build(self, input_shape):
        self.block.build((None, D))

    def call(self, x, states, training=None):
        state = keras.ops.tanh(x + self.block(states[0], training=training))
        return state, [state]
