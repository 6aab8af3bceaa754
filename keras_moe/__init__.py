"""Mixture-of-Experts layers for Keras 3 on TensorFlow, JAX, and PyTorch.

inputs (..., D) -> tokens (T, D) -> Router: Assignment -> dispatch -> Expert
-> combine -> (..., D). See `keras_moe.MoEBlock`.
"""

from keras_moe import (
    callbacks,
    compress,
    distribution,
    ensemble,
    export,
    layers,
    losses,
    metrics,
    model_surgery,
    models,
    routing,
    training,
)
from keras_moe.ensemble import Ensemble
from keras_moe.layers import (
    CGC,
    PLE,
    ClippedSwiGLU,
    Expert,
    ExpertLayers,
    GatedUnit,
    HierarchicalMoE,
    MixtureOfModels,
    ModalityEmbedding,
    MoEBlock,
    MultiGateMoE,
    SoftMoE,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
    UncertaintyWeightedModel,
    UncertaintyWeighting,
)
from keras_moe.layers.routers import *  # noqa: F403
from keras_moe.model_surgery import find_blocks, routing_of
from keras_moe.routing import Assignment

__version__ = "0.1.0"

__all__ = [
    "Assignment",
    "CGC",
    "ClippedSwiGLU",
    "Ensemble",
    "Expert",
    "ExpertLayers",
    "GatedUnit",
    "HierarchicalMoE",
    "MixtureOfModels",
    "MoEBlock",
    "ModalityEmbedding",
    "MultiGateMoE",
    "PLE",
    "SoftMoE",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "UncertaintyWeightedModel",
    "UncertaintyWeighting",
    "__version__",
    "callbacks",
    "compress",
    "distribution",
    "ensemble",
    "export",
    "find_blocks",
    "layers",
    "losses",
    "metrics",
    "model_surgery",
    "models",
    "routing",
    "routing_of",
    "training",
]
__all__ += layers.routers.__all__
