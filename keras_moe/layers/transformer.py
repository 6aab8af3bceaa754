"""Transformer parts around a mixture-of-experts block.

B batch, S sequence length, D hidden_dim.
"""

import inspect

import keras
from keras import ops

from keras_moe.layers import checks, sharing
from keras_moe.types import Assignment, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class TransformerEncoderBlock(keras.layers.Layer):
    """Pre-norm self-attention, then a feed-forward part, each with a residual.

    `x = x + attention(norm(x)); x = x + moe(norm(x))` (Xiong et al. 2020,
    figure 1b).

    Args:
        num_heads: heads of the attention; each has width `D // num_heads`.
        moe: the feed-forward part, a layer from `(B, S, D)` to `(B, S, D)`: a
            `MoEBlock`, or `Expert(F)` for the dense twin. Two blocks may
            share it.
        dropout: rate on the output of both parts, in training only.
        epsilon: of the layer normalisations.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: float `(B, S, D)`.
        mask: bool `(B, S)`, False for padding: it is not attended to, and
            `moe` sees the mask.
        training: bool.
        router_inputs, replay: of `moe`, a `MoEBlock`; see there.
        return_assignment: whether to return `(outputs, assignment)`; `moe`
            must be a `MoEBlock`.
        inputs_mask: see `MoEBlock`.

    Returns:
        `(B, S, D)`.

    Raises:
        ValueError: for an argument out of its range, or a width that
            `num_heads` does not divide.
    """

    def __init__(
        self,
        num_heads: int,
        moe,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = checks.check_positive_int("num_heads", num_heads)
        self.moe = moe
        sharing.own(self, moe)
        parameters = inspect.signature(moe.call).parameters
        self._moe_takes_mask = "mask" in parameters
        self.dropout = checks.check_rate("dropout", dropout)
        self.epsilon = epsilon

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for inputs `(B, S, D)`."""
        width = checks.check_input_shape(input_shape)
        if len(input_shape) != 3 or width % self.num_heads:
            raise ValueError(
                "`inputs` must be (batch, length, hidden_dim) with a hidden_dim"
                " that `num_heads` divides. Received: shape "
                f"{tuple(input_shape)}, num_heads={self.num_heads}. Change "
                "`num_heads` or the width of the inputs."
            )
        policy = {"dtype": self.dtype_policy}
        self.attention_norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon, name="attention_norm", **policy
        )
        self.attention = keras.layers.MultiHeadAttention(
            self.num_heads,
            key_dim=width // self.num_heads,
            name="attention",
            **policy,
        )
        self.moe_norm = keras.layers.LayerNormalization(
            epsilon=self.epsilon, name="moe_norm", **policy
        )
        self.drop = keras.layers.Dropout(self.dropout, name="drop", **policy)
        self.attention_norm.build(input_shape)
        self.attention.build(input_shape, input_shape)
        self.moe_norm.build(input_shape)
        if not self.moe.built:
            self.moe.build(input_shape)

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training=None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        return_assignment: bool = False,
        inputs_mask: Tensor | None = None,
    ):
        """Attends, then runs the feed-forward part; see the class."""
        mask = inputs_mask if mask is None else mask
        x = inputs + self._attend(inputs, mask, training)
        normed = self.moe_norm(x)
        options = {"mask": mask} if self._moe_takes_mask else {}
        given = {"router_inputs": router_inputs, "replay": replay}
        options |= {n: v for n, v in given.items() if v is not None}
        if not return_assignment:
            outputs = self.moe(normed, training=training, **options)
            return x + self.drop(outputs, training=training)
        outputs, assignment = self.moe(
            normed, training=training, return_assignment=True, **options
        )
        return x + self.drop(outputs, training=training), assignment

    def _attend(self, inputs, mask, training):
        x = self.attention_norm(inputs)
        if mask is not None:
            mask = ops.expand_dims(ops.cast(mask, "bool"), 1)
        x = self.attention(x, x, attention_mask=mask, training=training)
        return self.drop(x, training=training)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns the shape of the outputs: that of the inputs."""
        return tuple(input_shape)

    def compute_output_spec(
        self,
        inputs,
        mask=None,
        training=None,
        router_inputs=None,
        replay=None,
        return_assignment=False,
        inputs_mask=None,
    ):
        """Returns the symbolic outputs of symbolic inputs."""
        outputs = keras.KerasTensor(inputs.shape, self.compute_dtype)
        if not return_assignment:
            return outputs
        _, assignment = self.moe.compute_output_spec(
            inputs, return_assignment=True
        )
        return outputs, assignment

    def compute_mask(self, inputs, mask=None):
        """Passes the mask on."""
        return mask

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "moe": sharing.serialize_part(self.moe),
            "dropout": self.dropout,
            "epsilon": self.epsilon,
        }

    @classmethod
    def from_config(cls, config: dict):
        """Builds the layer that `get_config` describes."""
        moe = sharing.deserialize_part(config["moe"])
        return super().from_config({**config, "moe": moe})
