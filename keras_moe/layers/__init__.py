"""Floor 2: the layers. They own weights and call the functions below."""

from keras_moe.layers.expert import Expert
from keras_moe.layers.moe_block import MoEBlock
from keras_moe.layers.routers import (
    AttentionRouter,
    BaseRouter,
    CosineRouter,
    ExpertChoiceRouter,
    GShardRouter,
    HashRouter,
    LearnedRouter,
    NoisyTopKRouter,
    ReLURouter,
    Router,
    RuleRouter,
    SinkhornRouter,
    SwitchRouter,
    TokenBatch,
    TopPRouter,
)
from keras_moe.layers.transformer import (
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)

__all__ = [
    "AttentionRouter",
    "BaseRouter",
    "CosineRouter",
    "Expert",
    "ExpertChoiceRouter",
    "GShardRouter",
    "HashRouter",
    "LearnedRouter",
    "MoEBlock",
    "NoisyTopKRouter",
    "ReLURouter",
    "Router",
    "RuleRouter",
    "SinkhornRouter",
    "SwitchRouter",
    "TokenBatch",
    "TopPRouter",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
]
