"""Floor 2: the layers. They own weights and call the functions below."""

from keras_moe.layers.expert import Expert
from keras_moe.layers.moe_block import MoEBlock
from keras_moe.layers.router import Router
from keras_moe.layers.transformer import TransformerEncoderBlock

__all__ = ["Expert", "MoEBlock", "Router", "TransformerEncoderBlock"]
