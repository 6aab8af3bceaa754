"""Transformer blocks around a mixture-of-experts part."""

from keras_moe.layers.transformer.attention import (
    CachedAttention,
    grouped_attention,
    rotate,
)
from keras_moe.layers.transformer.decoder import TransformerDecoderBlock
from keras_moe.layers.transformer.encoder import TransformerEncoderBlock

__all__ = [
    "CachedAttention",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "grouped_attention",
    "rotate",
]
