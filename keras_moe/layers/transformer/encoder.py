"""The encoder block: every token reads every other.

B batch, S sequence length, D hidden_dim.
"""

import keras
from keras import ops

from keras_moe.layers.transformer.attention import CachedAttention
from keras_moe.layers.transformer.pre_norm import PreNormBlock
from keras_moe.types import Assignment, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class TransformerEncoderBlock(PreNormBlock):
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
        num_key_value_heads: None (one a head), or a divisor of `num_heads`
            for grouped-query attention (Ainslie et al. 2023).
        rotary: whether queries and keys are turned by their positions (RoPE,
            Su et al. 2021). Without, the inputs must bring positions.
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

    Example:

    ```python
    block = keras_moe.TransformerEncoderBlock(
        num_heads=4, moe=keras_moe.MoEBlock(4, intermediate_dim=32)
    )
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    def build_attention(self, input_shape: Shape) -> None:
        """Creates Keras's own attention, or one with positions or groups."""
        if self.rotary or self.num_key_value_heads:
            self.attention = CachedAttention(
                self.num_heads,
                self.num_key_value_heads,
                self.rotary,
                name="attention",
                dtype=self.dtype_policy,
            )
            self.attention.build(input_shape)
        else:
            self.attention = self._keras_attention(input_shape)

    def _keras_attention(self, input_shape):
        attention = keras.layers.MultiHeadAttention(
            self.num_heads,
            key_dim=input_shape[-1] // self.num_heads,
            name="attention",
            dtype=self.dtype_policy,
        )
        attention.build(input_shape, input_shape)
        return attention

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
        outputs, assignment = self.feed_forward(
            x, mask, training, router_inputs, replay, return_assignment
        )
        return (outputs, assignment) if return_assignment else outputs

    def _attend(self, inputs, mask, training):
        x = self.attention_norm(inputs)
        if isinstance(self.attention, CachedAttention):
            x = self.attention(x, key_mask=mask)
        else:
            if mask is not None:
                mask = ops.expand_dims(ops.cast(mask, "bool"), 1)
            x = self.attention(x, x, attention_mask=mask, training=training)
        return self.drop(x, training=training)

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
        assignment = self.moe_assignment_spec(
            inputs, router_inputs, return_assignment
        )
        return (outputs, assignment) if return_assignment else outputs
