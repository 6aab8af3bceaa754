"""Decoder block: a token reads itself and earlier tokens.

B batch, S sequence length, L places of a cache, M length of the encoder's
sequence, D hidden_dim, G key and value heads, H head_dim.
"""

from typing import Any

import keras

from keras_moe import checks
from keras_moe.checks import transformer_checks
from keras_moe.layers.transformer.attention import CachedAttention, KeysValues
from keras_moe.layers.transformer.pre_norm import PreNormBlock
from keras_moe.types import Assignment, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class TransformerDecoderBlock(PreNormBlock):
    """Applies causal self-attention, optional cross-attention, and an MoE part.

    Each part follows a layer normalization and has a residual connection.

    Args:
        num_heads: Int. Heads of the attentions, of width `D // num_heads`.
        moe: Feed-forward part: a `MoEBlock` whose router reads no later
            tokens, or `Expert(F)` for the dense twin.
        dropout: Float, 0 or above and below 1. Rate on the output of each
            part, only in training. 0 by default.
        epsilon: Float. Argument of the layer normalizations. 1e-6 by default.
        num_key_value_heads: Int, a divisor of `num_heads`, for grouped-query
            attention (Ainslie et al. 2023). `None` (the default) is one per
            head.
        rotary: Bool. Whether the self-attention has rotary positions (RoPE, Su
            et al. 2021). True by default. With False, the inputs must contain
            positions.
        cross_attention: Bool. Whether there is attention to the outputs of an
            encoder, which also have width D. False by default.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Float tensor of shape `(B, S, D)`.
        mask: Bool tensor of shape `(B, S)`, False for padding. It is used in
            the attention and passed to `moe`; with a `cache`, it is only
            passed to `moe`.
        training: Bool.
        encoder_outputs: Float tensor of shape `(B, M, D)`, for
            cross-attention.
        encoder_mask: Bool tensor of shape `(B, M)`, False for padding.
        encoder_cache: Output of `encoder_cache_of(encoder_outputs)`, in place
            of `encoder_outputs`, so that it is computed once for all steps.
        cache: Keys and values `(B, L, G, H)` of earlier tokens, from
            `empty_cache` or an earlier call, for generation. Those of the S
            inputs are written from place `index` on.
        index: Int scalar. Position of the first input. 0 by default.
        router_inputs, replay: Call arguments of `moe`, a `MoEBlock`.
        return_assignment: Bool. Whether to also return the `Assignment` of
            `moe`, a `MoEBlock`. False by default.
        inputs_mask, encoder_outputs_mask: The Keras masks of these tensors,
            which Keras passes by these names.

    Returns:
        Tensor of shape `(B, S, D)`; with a `cache`, `(outputs, cache)`. The
        assignment comes last.

    Raises:
        ValueError: If an argument is out of its range, if `num_heads` does not
            divide the width, if later tokens may change earlier ones because
            of the router or the capacity, if there is a cache and the router
            reads other tokens, or if encoder outputs are missing or not used.

    Reference: Vaswani et al. 2017, "Attention Is All You Need", section 3.1;
    pre-norm as in Xiong et al. 2020, "On Layer Normalization in the Transformer
    Architecture".

    Example:

    ```python
    block = keras_moe.TransformerDecoderBlock(
        num_heads=4, moe=keras_moe.MoEBlock(4, intermediate_dim=32)
    )
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    arguments = (*PreNormBlock.arguments, "cross_attention")

    def __init__(
        self,
        num_heads: int,
        moe: keras.layers.Layer,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        num_key_value_heads: int | None = None,
        rotary: bool = True,
        cross_attention: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            num_heads,
            moe,
            dropout,
            epsilon,
            num_key_value_heads,
            rotary,
            **kwargs,
        )
        transformer_checks.check_causal(moe)
        self.cross_attention = checks.check_bool(
            "cross_attention", cross_attention
        )

    def build_attention(self, input_shape: Shape) -> None:
        """Create the self-attention and the cross-attention."""
        heads: dict[str, Any] = {
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "dtype": self.dtype_policy,
        }
        self.attention = CachedAttention(
            rotary=self.rotary, causal=True, name="attention", **heads
        )
        self.attention.build(input_shape)
        if self.cross_attention:
            self.encoder_norm = self.norm("encoder_norm", input_shape)
            self.encoder_attention = CachedAttention(
                name="encoder_attention", **heads
            )
            self.encoder_attention.build(input_shape)

    def call(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        encoder_outputs: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        encoder_cache: KeysValues | None = None,
        cache: KeysValues | None = None,
        index: int | Tensor = 0,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        return_assignment: bool = False,
        inputs_mask: Tensor | None = None,
        encoder_outputs_mask: Tensor | None = None,
    ) -> Any:
        """Compute the attentions and the feed-forward part; see the class."""
        mask = inputs_mask if mask is None else mask
        if encoder_mask is None:
            encoder_mask = encoder_outputs_mask
        self._check_encoder(encoder_outputs, encoder_cache)
        if cache is not None:
            transformer_checks.check_cacheable(self.moe)
        x = self.attention_norm(inputs)
        if cache is None:
            x = self.attention(x, key_mask=mask)
        else:
            x, cache = self.attention(x, cache=cache, index=index)
        x = inputs + self.drop(x, training=training)
        if self.cross_attention:
            memory = encoder_cache or self.encoder_cache_of(encoder_outputs)
            read = self.encoder_attention(
                self.encoder_norm(x), key_mask=encoder_mask, memory=memory
            )
            x = x + self.drop(read, training=training)
        x, assignment = self.feed_forward(
            x, mask, training, router_inputs, replay, return_assignment
        )
        return _results(x, cache, assignment)

    def empty_cache(self, batch_size: int, max_length: int) -> KeysValues:
        """Return a cache for sequences of at most `max_length` tokens."""
        cache: KeysValues = self.attention.empty_cache(batch_size, max_length)
        return cache

    def encoder_cache_of(self, encoder_outputs: Tensor) -> KeysValues:
        """Return the keys and values of encoder outputs `(B, M, D)`."""
        cache: KeysValues = self.encoder_attention.keys_values(encoder_outputs)
        return cache

    def _check_encoder(
        self, encoder_outputs: Tensor | None, encoder_cache: KeysValues | None
    ) -> None:
        given = encoder_outputs is not None or encoder_cache is not None
        if given != self.cross_attention:
            raise ValueError(
                "`encoder_outputs` must be given if, and only if, there is "
                "cross-attention. Received: encoder_outputs "
                f"{'given' if given else 'missing'}, cross_attention="
                f"{self.cross_attention}. Build the layer with "
                f"cross_attention={given}."
            )

    def compute_output_spec(
        self,
        inputs: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        encoder_outputs: Tensor | None = None,
        encoder_mask: Tensor | None = None,
        encoder_cache: KeysValues | None = None,
        cache: KeysValues | None = None,
        index: int | Tensor = 0,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        return_assignment: bool = False,
        inputs_mask: Tensor | None = None,
        encoder_outputs_mask: Tensor | None = None,
    ) -> Any:
        """Return the symbolic outputs of symbolic inputs."""
        self._check_encoder(encoder_outputs, encoder_cache)
        outputs = keras.KerasTensor(inputs.shape, self.compute_dtype)
        assignment = self.moe_assignment_spec(
            inputs, router_inputs, return_assignment
        )
        return _results(outputs, cache, assignment)


def _results(*parts: Any) -> Any:
    """Return the parts that are not None: one alone, several as a tuple."""
    found = tuple(part for part in parts if part is not None)
    return found if len(found) > 1 else found[0]
