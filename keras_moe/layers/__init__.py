"""Floor 2: the layers. They own weights and call the functions below."""

from keras_moe.layers.expert import Expert
from keras_moe.layers.expert_layers import ExpertLayers
from keras_moe.layers.hierarchical_moe import HierarchicalMoE
from keras_moe.layers.mixture_of_models import MixtureOfModels
from keras_moe.layers.modality import ModalityEmbedding
from keras_moe.layers.moe_block import MoEBlock
from keras_moe.layers.multitask import (
    CGC,
    PLE,
    MultiGateMoE,
    UncertaintyWeightedModel,
    UncertaintyWeighting,
)
from keras_moe.layers.routers import (
    AttentionRouter,
    BaseRouter,
    CosineRouter,
    ExpertChoiceRouter,
    GShardRouter,
    HashRouter,
    HierarchicalRouter,
    LearnedRouter,
    ModalityRouter,
    NoisyTopKRouter,
    PathwayRouter,
    ReLURouter,
    Router,
    RuleRouter,
    SinkhornRouter,
    SwitchRouter,
    TokenBatch,
    TopPRouter,
)
from keras_moe.layers.soft_moe import SoftMoE
from keras_moe.layers.transformer import (
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)

__all__ = [
    "AttentionRouter",
    "BaseRouter",
    "CGC",
    "CosineRouter",
    "Expert",
    "ExpertChoiceRouter",
    "ExpertLayers",
    "GShardRouter",
    "HashRouter",
    "HierarchicalMoE",
    "HierarchicalRouter",
    "LearnedRouter",
    "MixtureOfModels",
    "MoEBlock",
    "ModalityEmbedding",
    "ModalityRouter",
    "MultiGateMoE",
    "NoisyTopKRouter",
    "PLE",
    "PathwayRouter",
    "ReLURouter",
    "Router",
    "RuleRouter",
    "SinkhornRouter",
    "SoftMoE",
    "SwitchRouter",
    "TokenBatch",
    "TopPRouter",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "UncertaintyWeightedModel",
    "UncertaintyWeighting",
]
