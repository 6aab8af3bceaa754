"""Pass token ids through embeddings and encoder blocks.

B batch, S sequence length, D hidden_dim.
"""

import keras
from keras import ops

from keras_moe.models import embedding_layers
from keras_moe.models.transformer_blocks import Blocks, router_inputs_of
from keras_moe.types import Tensor


def encoded(
    vocabulary_size: int, max_length: int, blocks: Blocks
) -> tuple[Tensor, Tensor, Tensor]:
    """Return symbolic ids `(B, S)`, their encoding, and their mask.

    Args:
        vocabulary_size: Positive int. Number of ids, padding included.
        max_length: Positive int. Number of learned positions.
        blocks: `Blocks` that the model has.
    """
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    layers = embedding_layers.embeddings(vocabulary_size, max_length, blocks)
    x = embedding_layers.embedded(layers, token_ids)
    mask = ops.not_equal(token_ids, embedding_layers.PADDING)
    for block in blocks.encoder():
        ids = router_inputs_of(block, token_ids)
        x = block(x, mask=mask, router_inputs=ids)
    return token_ids, embedding_layers.final_norm(blocks.dtype)(x), mask
