"""Layers around the blocks: embeddings of tokens and positions, pooling.

B batch, S sequence length, V vocabulary_size, D hidden_dim.
"""

from typing import TYPE_CHECKING, Any, TypeAlias

import keras
from keras import ops

from keras_moe import checks, kernels
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.quantization import KeptInFloats
from keras_moe.types import Shape, Tensor

if TYPE_CHECKING:  # it imports this module
    from keras_moe.models.transformer_blocks import Blocks

PADDING = 0  # the token id of padding


@keras.saving.register_keras_serializable(package="keras_moe")
class TokenEmbedding(NamedArguments, keras.layers.ReversibleEmbedding):
    """Map token ids to vectors, and hidden states back to logits.

    `layer(ids)` is `(B, S, D)`, with a mask that is False at id 0.
    `layer(hidden, reverse=True)` is float32 `(B, S, V)`, with the mask of
    `hidden`. It uses the transposed embeddings if `tie_weights` is `True`, the
    default (Press and Wolf 2016).

    Args:
        input_dim: Positive int. V.
        output_dim: Positive int. D.
        **kwargs: Arguments of `keras.layers.ReversibleEmbedding`.
    """

    def __init__(self, input_dim: int, output_dim: int, **kwargs: Any):
        options = {"mask_zero": True, "reverse_dtype": "float32", **kwargs}
        super().__init__(
            checks.check_positive_int("input_dim", input_dim),
            checks.check_positive_int("output_dim", output_dim),
            **options,
        )

    def compute_mask(
        self, inputs: Tensor, mask: Tensor | None = None
    ) -> Tensor | None:
        """Return bool `(B, S)`: False at id 0 of ids; else `mask`."""
        if "int" in keras.backend.standardize_dtype(inputs.dtype):
            return ops.not_equal(inputs, PADDING)
        return mask

    def compute_output_spec(
        self, inputs: Tensor, reverse: bool = False
    ) -> keras.KerasTensor:
        """Return the symbolic outputs of symbolic inputs."""
        outputs = super().compute_output_spec(inputs, reverse=reverse)
        if not reverse:
            return outputs
        return keras.KerasTensor(outputs.shape, self.reverse_dtype)


@keras.saving.register_keras_serializable(package="keras_moe")
class PositionEmbedding(NamedArguments, KeptInFloats, MoELayer):
    """Add a learned vector to each position (BERT, Devlin et al. 2018).

    Args:
        max_length: Positive int. Length of the longest sequence.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: float `(B, S, D)`.
        index: int scalar. Position of the first input. Defaults to 0.

    Raises:
        ValueError: If `max_length` is no positive int, or, in a call, if
            `index + S` is known and above `max_length`.
    """

    def __init__(self, max_length: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.max_length = checks.check_positive_int("max_length", max_length)

    def build(self, input_shape: Shape) -> None:
        """Create the table for inputs `(B, S, D)`."""
        width = checks.check_input_shape(input_shape)
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.max_length, width),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )

    def call(self, inputs: Tensor, index: int | Tensor = 0) -> Tensor:
        """Add the vectors of positions `index ... index + S - 1`."""
        length = ops.shape(inputs)[1]
        check_length(inputs.shape[1], self.max_length, index)
        table = ops.convert_to_tensor(self.embeddings)
        if isinstance(index, int) and index == 0:
            return inputs + table[:length]
        places = ops.arange(length, dtype="int32") + index
        return inputs + ops.take(table, places, axis=0)

    def compute_output_spec(
        self, inputs: Tensor, index: int | Tensor = 0
    ) -> keras.KerasTensor:
        """Return the symbolic outputs of symbolic inputs."""
        check_length(inputs.shape[1], self.max_length)
        return keras.KerasTensor(inputs.shape, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return the shape of the outputs, which is that of the inputs."""
        return tuple(input_shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        return {**super().get_config(), "max_length": self.max_length}


@keras.saving.register_keras_serializable(package="keras_moe")
class MeanPooling(NamedArguments, KeptInFloats, MoELayer):
    """Average the tokens of each sequence: `(B, S, D)` to `(B, D)`.

    Padding is excluded. The mean of a sequence of padding alone is zero, for
    which `keras.layers.GlobalAveragePooling1D` returns NaN. It is computed in
    float32.

    Call arguments:
        inputs: float `(B, S, D)`.
        mask: bool `(B, S)` or None. False for padding. `None` (the default)
            means that there is no padding.
    """

    def __init__(self, **kwargs: Any):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the mean `(B, D)` of the tokens that are not padding."""
        x = ops.cast(inputs, "float32")
        if mask is None:
            return ops.cast(ops.mean(x, axis=1), self.compute_dtype)
        mask = ops.expand_dims(ops.cast(mask, "bool"), -1)
        count = ops.sum(ops.cast(mask, "float32"), axis=1)
        total = ops.sum(ops.where(mask, x, 0.0), axis=1)
        return ops.cast(total / ops.maximum(count, 1.0), self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return `(B, D)` for `(B, S, D)`."""
        return (input_shape[0], input_shape[-1])

    def compute_output_spec(
        self, inputs: Tensor, mask: Tensor | None = None
    ) -> keras.KerasTensor:
        """Return the symbolic outputs of symbolic inputs."""
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, self.compute_dtype)

    def compute_mask(self, inputs: Tensor, mask: Tensor | None = None) -> None:
        """Return None, since the outputs have no axis of tokens."""
        return None


def check_length(
    length: int | None, max_length: int, index: int | Tensor = 0
) -> None:
    """Raise if a sequence is known to end behind the last position.

    Args:
        length: int or None. Length of the sequence if known.
        max_length: int. Number of positions.
        index: int scalar. Position of the first token, 0 if unknown.
    """
    first = kernels.known_int(index) or 0
    if isinstance(length, int) and not 0 <= first <= max_length - length:
        raise ValueError(
            "`inputs` must have at most `max_length` tokens, those before "
            f"`index` included. Received: {length} tokens, index={first}, "
            f"max_length={max_length}. Cut the inputs or build the model with "
            "a larger `max_length`."
        )


def check_sizes(vocabulary_size: int, max_length: int) -> tuple[int, int]:
    """Return both sizes of a model of tokens, integers above 0."""
    return (
        checks.check_positive_int("vocabulary_size", vocabulary_size),
        checks.check_positive_int("max_length", max_length),
    )


Embeddings: TypeAlias = tuple[TokenEmbedding, PositionEmbedding | None]
"""The layer of tokens, and that of learned positions if there are any."""


def embeddings(
    vocabulary_size: int, max_length: int, blocks: "Blocks", **options: Any
) -> Embeddings:
    """Return a `TokenEmbedding`, and a `PositionEmbedding` or None.

    Args:
        vocabulary_size: Positive int. V.
        max_length: Positive int. Number of learned positions, if
            `blocks.positions` is `"learned"`.
        blocks: `Blocks` that the model has.
        **options: Arguments of `TokenEmbedding`.
    """
    tokens = TokenEmbedding(
        vocabulary_size,
        blocks.hidden_dim,
        name="embedding",
        dtype=blocks.dtype,
        **options,
    )
    if blocks.positions == "rotary":
        return tokens, None
    return tokens, PositionEmbedding(
        max_length, name="positions", dtype=blocks.dtype
    )


def embedded(
    layers: Embeddings, token_ids: Tensor, index: int | Tensor = 0
) -> Tensor:
    """Return the vectors of ids, with learned positions if there are any.

    Args:
        layers: Layers from `embeddings`.
        token_ids: int `(B, S)`.
        index: int scalar. Position of the first id. Defaults to 0.

    Returns:
        float `(B, S, D)`.
    """
    tokens, positions = layers
    x = tokens(token_ids)
    return x if positions is None else positions(x, index=index)


def final_norm(
    dtype: Any, name: str = "final_norm"
) -> keras.layers.LayerNormalization:
    """Return the normalization behind the last pre-norm block."""
    return keras.layers.LayerNormalization(epsilon=1e-6, name=name, dtype=dtype)
