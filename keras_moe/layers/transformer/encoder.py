"""Encoder block: every token reads every token.

B batch, S sequence length, D hidden_dim.
"""

import keras
from keras import ops

from keras_moe import checks
from keras_moe.layers.transformer.attention import CachedAttention
from keras_moe.layers.transformer.pre_norm import PreNormBlock
from keras_moe.types import Assignment, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class TransformerEncoderBlock(PreNormBlock):
    """Applies pre-norm self-attention and an MoE part, each with a residual.

    `x = x + attention(norm(x)); x = x + moe(norm(x))`.

    Args:
        num_heads: Int. Heads of the attention, of width `D // num_heads`.
        moe: Feed-forward part, a layer from `(B, S, D)` to `(B, S, D)`: a
            `MoEBlock`, or `Expert(F)` for the dense twin. Several blocks may
            share it.
        dropout: Float, 0 or above and below 1. Rate on the output of both
            parts, only in training. 0 by default.
        epsilon: Float. Argument of the layer normalizations. 1e-6 by default.
        num_key_value_heads: Int, a divisor of `num_heads`, for grouped-query
            attention (Ainslie et al. 2023). `None` (the default) is one per
            head.
        rotary: Bool. Whether queries and keys are rotated by their positions
            (RoPE, Su et al. 2021). With False (the default), the inputs must
            contain positions.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Float tensor of shape `(B, S, D)`.
        mask: Bool tensor of shape `(B, S)`, False for padding. It is used in
            the attention and passed to `moe`.
        training: Bool.
        router_inputs, replay: Call arguments of `moe`, a `MoEBlock`.
        return_assignment: Bool. Whether to return `(outputs, assignment)`,
            with the `Assignment` of `moe`, a `MoEBlock`. False by default.
        inputs_mask: See `MoEBlock`.

    Returns:
        Tensor of shape `(B, S, D)`.

    Raises:
        ValueError: If an argument is out of its range, or if `num_heads` does
            not divide the width.

    Reference: Xiong et al. 2020, "On Layer Normalization in the Transformer
    Architecture", figure 1b.

    Example:

    ```python
    block = keras_moe.TransformerEncoderBlock(
        num_heads=4, moe=keras_moe.MoEBlock(4, intermediate_dim=32)
    )
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    def build_attention(self, input_shape: Shape) -> None:
        """Create `CachedAttention` for positions or groups, else Keras's."""
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

    def _keras_attention(
        self, input_shape: Shape
    ) -> keras.layers.MultiHeadAttention:
        attention = keras.layers.MultiHeadAttention(
            self.num_heads,
            key_dim=checks.check_input_shape(input_shape) // self.num_heads,
            name="attention",
            dtype=self.dtype_policy,
        )
        attention.build(input_shape, input_shape)
        return attention

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        return_assignment: bool = False,
        inputs_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Assignment]:
        """Compute the attention and the feed-forward part; see the class."""
        mask = inputs_mask if mask is None else mask
        x = inputs + self._attend(inputs, mask, training)
        outputs, assignment = self.feed_forward(
            x, mask, training, router_inputs, replay, return_assignment
        )
        return (outputs, assignment) if return_assignment else outputs

    def _attend(
        self, inputs: Tensor, mask: Tensor | None, training: bool | None
    ) -> Tensor:
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
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        return_assignment: bool = False,
        inputs_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Assignment]:
        """Return the symbolic outputs of symbolic inputs."""
        outputs = keras.KerasTensor(inputs.shape, self.compute_dtype)
        assignment = self.moe_assignment_spec(
            inputs, router_inputs, return_assignment
        )
        return (outputs, assignment) if return_assignment else outputs
