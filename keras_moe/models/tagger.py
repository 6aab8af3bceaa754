"""A tagger of tokens.

B batch, S sequence length.
"""

import keras

from keras_moe import checks
from keras_moe.layers import quantization
from keras_moe.models import parts
from keras_moe.models.base import MoEModel
from keras_moe.models.blocks import blocks_of
from keras_moe.models.encoding import encoded


@keras.saving.register_keras_serializable(package="keras_moe")
class MoETagger(MoEModel):
    """Token ids `(B, S)` to logits float32 `(B, S, num_tags)`.

    Pre-norm encoder blocks and one linear map. Id 0 is padding: it changes
    no other token, and counts in no loss or metric that `compile` adds.

    Args:
        vocabulary_size: number of ids, padding included.
        num_tags: of the logits.
        max_length: the longest sequence; it matters to learned positions.
        **blocks: `num_layers, hidden_dim, num_heads, intermediate_dim,
            num_experts` and what else `Blocks` takes; and `name`, `dtype`
            and `trainable`.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_tags: int,
        max_length: int,
        name: str | None = None,
        dtype=None,
        trainable: bool = True,
        **blocks,
    ):
        num_tags = checks.check_positive_int("num_tags", num_tags)
        vocabulary_size, max_length = parts.check_sizes(
            vocabulary_size, max_length
        )
        built = blocks_of(self, dtype, blocks)
        token_ids, x, _ = encoded(vocabulary_size, max_length, built)
        head = keras.layers.Dense(
            num_tags, name="head", dtype=quantization.float32_head(dtype)
        )
        arguments = {
            "vocabulary_size": vocabulary_size,
            "num_tags": num_tags,
            "max_length": max_length,
            **built.arguments,
        }
        super().__init__(token_ids, head(x), arguments, name, dtype, trainable)
