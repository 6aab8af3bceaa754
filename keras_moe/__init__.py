"""Mixture-of-Experts layers for Keras 3 on TensorFlow, JAX and PyTorch.

inputs (..., D) -> tokens (T, D) -> Router: Assignment -> dispatch -> Expert
-> combine -> (..., D). See `keras_moe.MoEBlock`.
"""

from keras_moe import callbacks, ensemble, layers, losses, metrics, routing
from keras_moe.ensemble import Ensemble
from keras_moe.layers import (
    CGC,
    PLE,
    AttentionRouter,
    CosineRouter,
    Expert,
    ExpertChoiceRouter,
    ExpertLayers,
    GShardRouter,
    HashRouter,
    HierarchicalMoE,
    HierarchicalRouter,
    MixtureOfModels,
    ModalityEmbedding,
    ModalityRouter,
    MoEBlock,
    MultiGateMoE,
    NoisyTopKRouter,
    PathwayRouter,
    ReLURouter,
    Router,
    RuleRouter,
    SinkhornRouter,
    SoftMoE,
    SwitchRouter,
    TopPRouter,
    TransformerEncoderBlock,
    UncertaintyWeightedModel,
    UncertaintyWeighting,
)
from keras_moe.routing import Assignment

__version__ = "0.1.0"

__all__ = [
    "Assignment",
    "AttentionRouter",
    "CGC",
    "CosineRouter",
    "Ensemble",
    "Expert",
    "ExpertChoiceRouter",
    "ExpertLayers",
    "GShardRouter",
    "HashRouter",
    "HierarchicalMoE",
    "HierarchicalRouter",
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
    "TopPRouter",
    "TransformerEncoderBlock",
    "UncertaintyWeightedModel",
    "UncertaintyWeighting",
    "__version__",
    "callbacks",
    "ensemble",
    "layers",
    "losses",
    "metrics",
    "routing",
]
