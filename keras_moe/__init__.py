"""Mixture-of-Experts layers for Keras 3 on TensorFlow, JAX and PyTorch.

inputs (..., D) -> tokens (T, D) -> Router: Assignment -> dispatch -> Expert
-> combine -> (..., D). See `keras_moe.MoEBlock`.
"""

from keras_moe import callbacks, layers, losses, metrics, models, routing
from keras_moe.layers import (
    AttentionRouter,
    CosineRouter,
    Expert,
    ExpertChoiceRouter,
    GShardRouter,
    HashRouter,
    MoEBlock,
    NoisyTopKRouter,
    ReLURouter,
    Router,
    RuleRouter,
    SinkhornRouter,
    SwitchRouter,
    TopPRouter,
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)
from keras_moe.routing import Assignment

__version__ = "0.1.0"

__all__ = [
    "Assignment",
    "AttentionRouter",
    "CosineRouter",
    "Expert",
    "ExpertChoiceRouter",
    "GShardRouter",
    "HashRouter",
    "MoEBlock",
    "NoisyTopKRouter",
    "ReLURouter",
    "Router",
    "RuleRouter",
    "SinkhornRouter",
    "SwitchRouter",
    "TopPRouter",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "__version__",
    "callbacks",
    "layers",
    "losses",
    "metrics",
    "models",
    "routing",
]
