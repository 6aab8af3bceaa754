"""Mixture-of-Experts layers for Keras 3 on TensorFlow, JAX and PyTorch.

inputs (..., D) -> tokens (T, D) -> Router: Assignment -> dispatch -> Expert
-> combine -> (..., D). See `keras_moe.MoEBlock`.
"""

from keras_moe import callbacks, layers, losses, metrics, routing
from keras_moe.layers import (
    Expert,
    MoEBlock,
    Router,
    TransformerEncoderBlock,
)
from keras_moe.routing import Assignment

__version__ = "0.1.0"

__all__ = [
    "Assignment",
    "Expert",
    "MoEBlock",
    "Router",
    "TransformerEncoderBlock",
    "__version__",
    "callbacks",
    "layers",
    "losses",
    "metrics",
    "routing",
]
