"""Transformer blocks around a mixture-of-experts part."""

from keras_moe.layers.transformer.attention import CachedAttention
from keras_moe.layers.transformer.decoder import TransformerDecoderBlock
from keras_moe.layers.transformer.encoder import TransformerEncoderBlock
from keras_moe.layers.transformer.grouped_attention import (
    grouped_attention,
    rotate,
)

__all__ = [
    "CachedAttention",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "grouped_attention",
    "rotate",
]
