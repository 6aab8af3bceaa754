"""A classifier of token sequences.

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
class MoEClassifier(MoEModel):
    """Token ids `(B, S)` to logits float32 `(B, num_classes)`.

    Pre-norm encoder blocks, then the mean over the tokens. Id 0 is padding,
    which changes nothing. Train it with
    `SparseCategoricalCrossentropy(from_logits=True)`.

    Args:
        vocabulary_size: number of ids, padding included.
        num_classes: of the logits.
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
        num_classes: int,
        max_length: int,
        name: str | None = None,
        dtype=None,
        trainable: bool = True,
        **blocks,
    ):
        num_classes = checks.check_positive_int("num_classes", num_classes)
        vocabulary_size, max_length = parts.check_sizes(
            vocabulary_size, max_length
        )
        built = blocks_of(self, dtype, blocks)
        token_ids, x, mask = encoded(vocabulary_size, max_length, built)
        x = parts.MeanPooling(name="pooling", dtype=built.dtype)(x, mask=mask)
        head = keras.layers.Dense(
            num_classes, name="head", dtype=quantization.float32_head(dtype)
        )
        arguments = {
            "vocabulary_size": vocabulary_size,
            "num_classes": num_classes,
            "max_length": max_length,
            **built.arguments,
        }
        super().__init__(token_ids, head(x), arguments, name, dtype, trainable)
