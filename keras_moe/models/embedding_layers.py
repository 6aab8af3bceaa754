"""Layers around the blocks: embeddings of tokens and positions, pooling.

B batch, S sequence length, V vocabulary_size, D hidden_dim.
"""

import keras
from keras import ops

from keras_moe import checks, kernels
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.quantization import KeptInFloats
from keras_moe.types import Shape, Tensor

PADDING = 0  # the token id that stands for nothing


@keras.saving.register_keras_serializable(package="keras_moe")
class TokenEmbedding(NamedArguments, keras.layers.ReversibleEmbedding):
    """Token ids to vectors, and hidden states back to logits.

    `layer(ids)` is `(B, S, D)`, with a mask that is False where the id is 0;
    `layer(hidden, reverse=True)` is float32 `(B, S, V)`, by the transposed
    embeddings where `tie_weights` is set (Press and Wolf 2016), and with the
    mask of `hidden`.

    Args:
        input_dim: V.
        output_dim: D.
        **kwargs: of `keras.layers.ReversibleEmbedding`.
    """

    def __init__(self, input_dim: int, output_dim: int, **kwargs):
        options = {"mask_zero": True, "reverse_dtype": "float32", **kwargs}
        super().__init__(
            checks.check_positive_int("input_dim", input_dim),
            checks.check_positive_int("output_dim", output_dim),
            **options,
        )

    def compute_mask(self, inputs, mask=None):
        """Returns bool `(B, S)`: of ids, which are not 0; else `mask`."""
        if "int" in keras.backend.standardize_dtype(inputs.dtype):
            return ops.not_equal(inputs, PADDING)
        return mask

    def compute_output_spec(self, inputs, reverse=False):
        """Returns the symbolic outputs of symbolic inputs."""
        outputs = super().compute_output_spec(inputs, reverse=reverse)
        if not reverse:
            return outputs
        return keras.KerasTensor(outputs.shape, self.reverse_dtype)


@keras.saving.register_keras_serializable(package="keras_moe")
class PositionEmbedding(NamedArguments, KeptInFloats, MoELayer):
    """Adds a learned vector to each position (BERT, Devlin et al. 2018).

    Args:
        max_length: the longest sequence.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: float `(B, S, D)`.
        index: int scalar, the position of the first input.
    """

    def __init__(self, max_length: int, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.max_length = checks.check_positive_int("max_length", max_length)

    def build(self, input_shape: Shape) -> None:
        """Creates the table for inputs `(B, S, D)`."""
        width = checks.check_input_shape(input_shape)
        self.embeddings = self.add_weight(
            name="embeddings",
            shape=(self.max_length, width),
            initializer=keras.initializers.RandomNormal(stddev=0.02),
        )

    def call(self, inputs: Tensor, index: int | Tensor = 0) -> Tensor:
        """Adds the vectors of `index ... index + S - 1`."""
        length = ops.shape(inputs)[1]
        check_length(inputs.shape[1], self.max_length, index)
        table = ops.convert_to_tensor(self.embeddings)
        if isinstance(index, int) and index == 0:
            return inputs + table[:length]
        places = ops.arange(length, dtype="int32") + index
        return inputs + ops.take(table, places, axis=0)

    def compute_output_spec(self, inputs, index=0):
        """Returns the symbolic outputs of symbolic inputs."""
        check_length(inputs.shape[1], self.max_length)
        return keras.KerasTensor(inputs.shape, self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns the shape of the outputs: that of the inputs."""
        return tuple(input_shape)

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        return {**super().get_config(), "max_length": self.max_length}


@keras.saving.register_keras_serializable(package="keras_moe")
class MeanPooling(NamedArguments, KeptInFloats, MoELayer):
    """The mean of the tokens that are no padding: `(B, S, D)` to `(B, D)`.

    Zero for a sequence of padding alone, where
    `keras.layers.GlobalAveragePooling1D` gives NaN. Computed in float32.

    Call arguments:
        inputs: float `(B, S, D)`.
        mask: bool `(B, S)`, or None.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True

    def call(self, inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        """Takes the mean."""
        x = ops.cast(inputs, "float32")
        if mask is None:
            return ops.cast(ops.mean(x, axis=1), self.compute_dtype)
        mask = ops.expand_dims(ops.cast(mask, "bool"), -1)
        count = ops.sum(ops.cast(mask, "float32"), axis=1)
        total = ops.sum(ops.where(mask, x, 0.0), axis=1)
        return ops.cast(total / ops.maximum(count, 1.0), self.compute_dtype)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Returns `(B, D)` for `(B, S, D)`."""
        return (input_shape[0], input_shape[-1])

    def compute_output_spec(self, inputs, mask=None):
        """Returns the symbolic outputs of symbolic inputs."""
        shape = self.compute_output_shape(inputs.shape)
        return keras.KerasTensor(shape, self.compute_dtype)

    def compute_mask(self, inputs, mask=None) -> None:
        """Returns None: there are no tokens any more."""
        return None

    def get_config(self) -> dict:
        """Returns the arguments that build this layer again."""
        return super().get_config()


def check_length(
    length: int | None, max_length: int, index: int | Tensor = 0
) -> None:
    """Raises if a sequence goes on behind the last position, as far as its
    length and the position of its first token are known."""
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


def embeddings(vocabulary_size: int, max_length: int, blocks, **options):
    """Returns a `TokenEmbedding` and a `PositionEmbedding`, or None for it.

    Args:
        vocabulary_size: V.
        max_length: of the learned positions, where `blocks` asks for such.
        blocks: `Blocks`.
        **options: of `TokenEmbedding`.
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


def embedded(layers: tuple, token_ids: Tensor, index: int | Tensor = 0):
    """Returns the vectors of ids, with positions if there are any.

    Args:
        layers: from `embeddings`.
        token_ids: int `(B, S)`.
        index: int scalar, the position of the first id.

    Returns:
        `(B, S, D)`.
    """
    tokens, positions = layers
    x = tokens(token_ids)
    return x if positions is None else positions(x, index=index)


def final_norm(dtype, name: str = "final_norm"):
    """Returns the normalisation behind the last pre-norm block."""
    return keras.layers.LayerNormalization(epsilon=1e-6, name=name, dtype=dtype)
