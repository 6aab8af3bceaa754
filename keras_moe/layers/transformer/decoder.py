"""The decoder block: a token reads itself and those before it.

B batch, S sequence length, L places of a cache, M length of the encoder's
sequence, D hidden_dim, G key and value heads, H head_dim.
"""

import keras

from keras_moe import checks
from keras_moe.checks import transformer_checks
from keras_moe.layers.transformer.attention import CachedAttention, KeysValues
from keras_moe.layers.transformer.pre_norm import PreNormBlock
from keras_moe.types import Assignment, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class TransformerDecoderBlock(PreNormBlock):
    """Causal self-attention, attention to an encoder if asked, feed-forward
    part; each behind a norm and with a residual (Vaswani et al. 2017, section
    3.1; pre-norm as in Xiong et al. 2020).

    Args:
        num_heads: heads of the attentions; each has width `D // num_heads`.
        moe: the feed-forward part: a `MoEBlock` whose router does not look
            at later tokens, or `Expert(F)` for the dense twin.
        dropout: rate on the output of every part, in training only.
        epsilon: of the layer normalisations.
        num_key_value_heads: None (one a head), or a divisor of `num_heads`
            for grouped-query attention (Ainslie et al. 2023).
        rotary: whether the self-attention has rotary positions (RoPE, Su et
            al. 2021). Without, the inputs must bring positions.
        cross_attention: whether there is attention to an encoder's outputs,
            which have the width D, too.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: float `(B, S, D)`.
        mask: bool `(B, S)`, False for padding: it is not attended to, and
            `moe` sees the mask. With a `cache` only `moe` does.
        training: bool.
        encoder_outputs: float `(B, M, D)`, where there is cross-attention.
        encoder_mask: bool `(B, M)`, False for the encoder's padding.
        encoder_cache: what `encoder_cache_of(encoder_outputs)` returned, in
            place of `encoder_outputs`: computed once for all steps.
        cache: from `empty_cache` or an earlier call, for generation: keys and
            values `(B, L, G, H)` of the tokens before; S new ones are written
            to it from place `index` on.
        index: int scalar, the position of the first input.
        router_inputs, replay: of `moe`, a `MoEBlock`; see there.
        return_assignment: whether to return the `Assignment`, too; `moe` must
            be a `MoEBlock`.
        inputs_mask, encoder_outputs_mask: the masks that Keras has for these
            tensors, which it passes by these names.

    Returns:
        `(B, S, D)`; with a `cache`, `(outputs, cache)`; the assignment last.

    Raises:
        ValueError: for an argument out of its range, a width that `num_heads`
            does not divide, a router or a capacity that lets later tokens
            change earlier ones, a cache with a router that reads other
            tokens, and an encoder's outputs that are missing or not used.

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
        moe,
        dropout: float = 0.0,
        epsilon: float = 1e-6,
        num_key_value_heads: int | None = None,
        rotary: bool = True,
        cross_attention: bool = False,
        **kwargs,
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
        """Creates the attention to the sequence, and to the encoder's."""
        heads = {
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
        training=None,
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
    ):
        """Attends, then runs the feed-forward part; see the class."""
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
        """Returns a cache for sequences of at most `max_length` tokens."""
        return self.attention.empty_cache(batch_size, max_length)

    def encoder_cache_of(self, encoder_outputs: Tensor) -> KeysValues:
        """Returns the keys and values of an encoder's outputs `(B, M, D)`."""
        return self.encoder_attention.keys_values(encoder_outputs)

    def _check_encoder(self, encoder_outputs, encoder_cache):
        given = encoder_outputs is not None or encoder_cache is not None
        if given != self.cross_attention:
            raise ValueError(
                "`encoder_outputs` must be given where, and only where, there "
                "is cross-attention. Received: encoder_outputs "
                f"{'given' if given else 'missing'}, cross_attention="
                f"{self.cross_attention}. Build the layer with "
                f"cross_attention={given}."
            )

    def compute_output_spec(
        self,
        inputs,
        mask=None,
        training=None,
        encoder_outputs=None,
        encoder_mask=None,
        encoder_cache=None,
        cache=None,
        index=0,
        router_inputs=None,
        replay=None,
        return_assignment=False,
        inputs_mask=None,
        encoder_outputs_mask=None,
    ):
        """Returns the symbolic outputs of symbolic inputs."""
        self._check_encoder(encoder_outputs, encoder_cache)
        outputs = keras.KerasTensor(inputs.shape, self.compute_dtype)
        assignment = self.moe_assignment_spec(
            inputs, router_inputs, return_assignment
        )
        return _results(outputs, cache, assignment)


def _results(*parts):
    """Returns the parts that there are: one by itself, several as a tuple."""
    found = tuple(part for part in parts if part is not None)
    return found if len(found) > 1 else found[0]
