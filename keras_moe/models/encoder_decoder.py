"""Call the layers of an encoder-decoder model.

B batch, M length of the encoder's sequence, S of the decoder's, V vocabulary.
"""

from typing import Any

from keras import ops

from keras_moe.models import embedding_layers
from keras_moe.models.transformer_blocks import router_inputs_of
from keras_moe.types import Tensor


def logits_of(
    layers: dict[str, Any], encoder_token_ids: Tensor, decoder_token_ids: Tensor
) -> Tensor:
    """Return the logits `(B, S, V)` of both sequences."""
    encoding, encoder_mask = encode(layers, encoder_token_ids)
    memory = {
        "encoder_outputs": encoding,
        "encoder_mask": encoder_mask,
        "mask": ops.not_equal(decoder_token_ids, embedding_layers.PADDING),
    }
    memories = [memory for _ in layers["decoder"]]
    return decode(layers, decoder_token_ids, memories)[0]


def encode(layers: dict[str, Any], token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the encoding `(B, M, D)` and its mask `(B, M)`."""
    mask = ops.not_equal(token_ids, embedding_layers.PADDING)
    x = embedding_layers.embedded(layers["embeddings"], token_ids)
    for block in layers["encoder"]:
        ids = router_inputs_of(block, token_ids)
        x = block(x, mask=mask, router_inputs=ids)
    return layers["encoder_norm"](x), mask


def decode(
    layers: dict[str, Any],
    token_ids: Tensor,
    memories: list[dict[str, Any]],
    index: int | Tensor = 0,
) -> tuple[Tensor, tuple[Any, ...]]:
    """Return the logits, and the blocks' caches if `memories` have any.

    Args:
        layers: Dict from the name of each part of the model to its layers.
        token_ids: int `(B, S)`.
        memories: Keyword arguments of each block's call.
        index: int scalar. Position of the first token. Defaults to 0.
    """
    x = embedding_layers.embedded(layers["embeddings"], token_ids, index=index)
    caches = []
    for block, memory in zip(layers["decoder"], memories, strict=True):
        ids = router_inputs_of(block, token_ids)
        x = block(x, index=index, router_inputs=ids, **memory)
        if "cache" in memory:
            x, cache = x
            caches.append(cache)
    tokens = layers["embeddings"][0]
    return tokens(layers["decoder_norm"](x), reverse=True), tuple(caches)
