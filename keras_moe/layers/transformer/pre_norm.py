"""What encoder and decoder blocks share: norms, dropout, feed-forward part.

B batch, S sequence length, D hidden_dim.
"""

import inspect

import keras

from keras_moe import checks
from keras_moe.checks import transformer_checks
from keras_moe.layers import quantization, sharing
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.mixture import Mixture
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.types import Shape


class PreNormBlock(NamedArguments, MoELayer):
    """Base of the transformer blocks; a subclass writes `build_attention`.

    Args:
        num_heads: heads of the attention; each has width `D // num_heads`.
        moe: the feed-forward part, a layer from `(B, S, D)` to `(B, S, D)`: a
            `MoEBlock`, or `Expert(F)` for the dense twin. Two blocks may
            share it.
        dropout: rate on the output of every part, in training only.
        epsilon: of the layer normalisations.
        num_key_value_heads: of the attention, a divisor of `num_heads`, or
            None for as many.
        rotary: whether the attention has rotary positions.
        **kwargs: of `keras.layers.Layer`.
    """

    arguments: tuple[str, ...] = (
        "num_heads",
        "moe",
        "dropout",
        "epsilon",
        "num_key_value_heads",
        "rotary",
    )

    def __init__(
        self,
        num_heads: int,
        moe,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        num_key_value_heads: int | None = None,
        rotary: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = checks.check_positive_int("num_heads", num_heads)
        self.moe = transformer_checks.check_moe(moe)
        sharing.own(self, moe)
        parameters = inspect.signature(moe.call).parameters
        self._moe_takes_mask = "mask" in parameters
        self.dropout = checks.check_rate("dropout", dropout)
        self.epsilon = checks.check_above("epsilon", epsilon, 0, 1)
        self.num_key_value_heads = transformer_checks.check_num_key_value_heads(
            num_key_value_heads, num_heads
        )
        self.rotary = checks.check_bool("rotary", rotary)

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for inputs `(B, S, D)`."""
        transformer_checks.check_width(input_shape, self.num_heads, self.rotary)
        self.attention_norm = self.norm("attention_norm", input_shape)
        self.build_attention(input_shape)
        self.moe_norm = self.norm("moe_norm", input_shape)
        self.drop = keras.layers.Dropout(
            self.dropout, name="drop", dtype=self.dtype_policy
        )
        if not self.moe.built:
            self.moe.build(input_shape)
        transformer_checks.check_moe_shape(self, input_shape)
        quantization.restore_configs(self)

    def build_attention(self, input_shape: Shape) -> None:
        """Creates the attention; what a subclass writes."""
        raise NotImplementedError

    def norm(self, name, input_shape):
        """Returns a built layer normalisation."""
        layer = keras.layers.LayerNormalization(
            epsilon=self.epsilon, name=name, dtype=self.dtype_policy
        )
        layer.build(input_shape)
        return layer

    def feed_forward(
        self,
        x,
        mask,
        training,
        router_inputs=None,
        replay=None,
        return_assignment=False,
    ):
        """Returns `x + moe(norm(x))`, and the assignment or None."""
        options = {"mask": mask} if self._moe_takes_mask else {}
        given = {"router_inputs": router_inputs, "replay": replay}
        options |= {n: v for n, v in given.items() if v is not None}
        if return_assignment:
            options["return_assignment"] = True
        outputs = self.moe(self.moe_norm(x), training=training, **options)
        assignment = None
        if return_assignment:
            outputs, assignment = outputs
        return x + self.drop(outputs, training=training), assignment

    def moe_assignment_spec(self, inputs, router_inputs, return_assignment):
        """Return the symbolic assignment, or None if it is not asked for."""
        if not (isinstance(self.moe, Mixture) or return_assignment):
            return None
        outputs = self.moe.compute_output_spec(
            inputs,
            router_inputs=router_inputs,
            return_assignment=return_assignment,
        )
        return outputs[1] if return_assignment else None

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns the shape of the outputs: that of the inputs."""
        return tuple(input_shape)

    def compute_mask(self, inputs, mask=None):
        """Passes the mask on."""
        return mask

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        own = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in self.arguments
        }
        own["moe"] = sharing.serialize_part(self.moe, self)
        own["dtype"] = quantization.saved_dtype(self)
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config: dict):
        """Builds the layer that `get_config` describes."""
        return super().from_config(sharing.deserialize_parts(config, "moe"))
