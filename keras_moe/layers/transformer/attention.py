"""Attention with rotary positions, grouped heads, and a cache.

B batch, S queries, L keys (or places of the cache), D hidden_dim, N heads, G
key and value heads, H head_dim = D / N.
"""

from typing import Any, TypeAlias

import keras
from keras import ops

from keras_moe import checks, kernels
from keras_moe.checks import transformer_checks
from keras_moe.layers import quantization
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.transformer.grouped_attention import (
    grouped_attention,
    rotate,
)
from keras_moe.types import Shape, Tensor

KeysValues: TypeAlias = tuple[Tensor, Tensor]
"""Keys and values, each `(B, L, G, H)`."""


@keras.saving.register_keras_serializable(package="keras_moe")
class CachedAttention(NamedArguments, MoELayer):
    """Computes attention to the inputs, to a cache, or to another sequence.

    Without rotary positions and with one key head per head, it equals
    `keras.layers.MultiHeadAttention`, and its weights have the same names and
    shapes.

    Args:
        num_heads: Int, N, a divisor of D.
        num_key_value_heads: Int, G, a divisor of N. `None` (the default) is N.
            Fewer key heads make the cache `N / G` times smaller.
        rotary: Bool. Whether queries and keys are rotated by their positions.
            False by default.
        causal: Bool. Whether a token reads only itself and earlier tokens.
            False by default.
        use_bias: Bool. Whether the four projections have biases. True by
            default.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Float tensor of shape `(B, S, D)`.
        key_mask: Bool tensor of shape `(B, L)`, False for keys that must not
            be read.
        memory: `(keys, values)` of another sequence, from `keys_values`, which
            is read in place of the inputs.
        cache: `(keys, values)`, each `(B, L, G, H)`. The keys and values of
            the inputs are written from place `index` on, and each token reads
            its own place and all earlier places.
        index: Int scalar. Position of the first input in its sequence. 0 by
            default.

    Returns:
        Tensor of shape `(B, S, D)`; with a `cache`, `(outputs, cache)`.

    Raises:
        ValueError: If an argument is out of its range, or if the inputs do not
            fit into the cache from `index` on. If `index` is traced, only the
            number of inputs is checked, and JAX and TensorFlow write to the
            last places.
    """

    def __init__(
        self,
        num_heads: int,
        num_key_value_heads: int | None = None,
        rotary: bool = False,
        causal: bool = False,
        use_bias: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = checks.check_positive_int("num_heads", num_heads)
        self.num_key_value_heads = transformer_checks.check_num_key_value_heads(
            num_key_value_heads, num_heads
        )
        self.rotary = checks.check_bool("rotary", rotary)
        self.causal = checks.check_bool("causal", causal)
        self.use_bias = checks.check_bool("use_bias", use_bias)

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(B, S, D)`."""
        width = transformer_checks.check_width(
            input_shape, self.num_heads, self.rotary
        )
        self.head_dim = width // self.num_heads
        of_keys = self.num_key_value_heads or self.num_heads
        self.query = self._projection("query", self.num_heads)
        self.key = self._projection("key", of_keys)
        self.value = self._projection("value", of_keys)
        self.output_projection = keras.layers.EinsumDense(
            "abcd,cde->abe",
            output_shape=(None, width),
            bias_axes="e" if self.use_bias else None,
            name="attention_output",
            dtype=self.dtype_policy,
        )
        for layer in (self.query, self.key, self.value):
            layer.build(input_shape)
        heads = (*input_shape[:-1], self.num_heads, self.head_dim)
        self.output_projection.build(heads)
        for layer in (self.query, self.key, self.value, self.output_projection):
            layer.supports_masking = True  # each token is computed separately

    def _projection(self, name: str, heads: int) -> keras.layers.EinsumDense:
        return keras.layers.EinsumDense(
            "abc,cde->abde",
            output_shape=(None, heads, self.head_dim),
            bias_axes="de" if self.use_bias else None,
            name=name,
            dtype=self.dtype_policy,
        )

    def call(
        self,
        inputs: Tensor,
        key_mask: Tensor | None = None,
        memory: KeysValues | None = None,
        cache: KeysValues | None = None,
        index: int | Tensor = 0,
    ) -> Tensor | tuple[Tensor, KeysValues]:
        """Compute the attention; see the class."""
        query = self._turned(self.query(inputs), index)
        if cache is not None:
            key, value = cache = self._written(cache, inputs, index)
            places = ops.arange(ops.shape(key)[1], dtype="int32")
            readable = _places(inputs, index)[:, None] >= places
        else:
            key, value = memory or self.keys_values(inputs)
            readable = self._readable(inputs, key_mask, memory is None)
        outputs = grouped_attention(query, key, value, readable)
        outputs = self.output_projection(outputs)
        return outputs if cache is None else (outputs, cache)

    def keys_values(
        self, inputs: Tensor, index: int | Tensor = 0
    ) -> KeysValues:
        """Return the keys and values of inputs `(B, L, D)`.

        Args:
            inputs: Float tensor of shape `(B, L, D)`.
            index: Int scalar. Position of the first input. 0 by default.
        """
        return self._turned(self.key(inputs), index), self.value(inputs)

    def empty_cache(self, batch_size: int, max_length: int) -> KeysValues:
        """Return a cache of `max_length` places for each sequence."""
        heads = self.num_key_value_heads or self.num_heads
        shape = (batch_size, max_length, heads, self.head_dim)
        return (
            ops.zeros(shape, self.compute_dtype),
            ops.zeros(shape, self.compute_dtype),
        )

    def _turned(self, heads: Tensor, index: int | Tensor) -> Tensor:
        if not self.rotary:
            return heads
        return rotate(heads, _places(heads, index))

    def _written(
        self, cache: KeysValues, inputs: Tensor, index: int | Tensor
    ) -> KeysValues:
        """Return the cache with the keys and values of the inputs."""
        start = kernels.known_int(index) or 0
        transformer_checks.check_room(inputs, cache[0], start)
        place = (0, index, 0, 0)
        keys, values = self.keys_values(inputs, index)
        return (
            ops.slice_update(cache[0], place, keys),
            ops.slice_update(cache[1], place, values),
        )

    def _readable(
        self, inputs: Tensor, key_mask: Tensor | None, to_itself: bool
    ) -> Tensor | None:
        """Return a bool mask that broadcasts to `(B, N, S, L)`, or None."""
        readable = None
        if key_mask is not None:
            # LiteRT has no index with two new axes.
            readable = ops.expand_dims(ops.cast(key_mask, "bool"), (1, 2))
        if self.causal and to_itself:
            place = _places(inputs, 0)
            earlier = place[:, None] >= place
            readable = (
                earlier
                if readable is None
                else ops.logical_and(readable, earlier)
            )
        return readable

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the outputs: that of the inputs."""
        return tuple(input_shape)

    def compute_output_spec(
        self,
        inputs: Tensor,
        key_mask: Tensor | None = None,
        memory: KeysValues | None = None,
        cache: KeysValues | None = None,
        index: int | Tensor = 0,
    ) -> Tensor | tuple[Tensor, KeysValues]:
        """Return the symbolic outputs of symbolic inputs."""
        outputs = keras.KerasTensor(inputs.shape, self.compute_dtype)
        return outputs if cache is None else (outputs, cache)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        return {
            **super().get_config(),
            "dtype": quantization.saved_dtype(self),
            "num_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "rotary": self.rotary,
            "causal": self.causal,
            "use_bias": self.use_bias,
        }


def _places(x: Tensor, index: int | Tensor) -> Tensor:
    """Return the positions of the tokens of `(B, S, ...)`, int32 `(S,)`."""
    return ops.arange(ops.shape(x)[1], dtype="int32") + index
