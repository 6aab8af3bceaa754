"""Floor 2: the layers. They own weights and call the functions below."""

from keras_moe.layers.expert import Expert
from keras_moe.layers.expert_layers import ExpertLayers
from keras_moe.layers.mixture_of_models import MixtureOfModels
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
from keras_moe.layers.transformer import TransformerEncoderBlock

__all__ = [
    "AttentionRouter",
    "BaseRouter",
    "CosineRouter",
    "Expert",
    "ExpertChoiceRouter",
    "ExpertLayers",
    "GShardRouter",
    "HashRouter",
    "LearnedRouter",
    "MixtureOfModels",
    "MoEBlock",
    "NoisyTopKRouter",
    "ReLURouter",
    "Router",
    "RuleRouter",
    "SinkhornRouter",
    "SwitchRouter",
    "TokenBatch",
    "TopPRouter",
    "TransformerEncoderBlock",
]
