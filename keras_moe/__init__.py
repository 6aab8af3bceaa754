"""Mixture-of-Experts layers for Keras 3 on TensorFlow, JAX and PyTorch.

inputs (..., D) -> tokens (T, D) -> Router: Assignment -> dispatch -> Expert
-> combine -> (..., D). See `keras_moe.MoEBlock`.
"""

import sys

if sys.argv[:1] == ["-m"]:  # Python is looking for a module of the package
    import keras_moe_cli

    keras_moe_cli.run_without_keras()

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
    TransformerDecoderBlock,
    TransformerEncoderBlock,
    UncertaintyWeightedModel,
    UncertaintyWeighting,
)
from keras_moe.layers.find import find_blocks
from keras_moe.model_surgery import routing_of
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
