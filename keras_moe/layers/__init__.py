"""Layers, floor 2 of the package: they own weights and call floor 1."""

from keras_moe.kernels import ClippedSwiGLU
from keras_moe.layers import routers
from keras_moe.layers.expert import Expert
from keras_moe.layers.expert_layers import ExpertLayers
from keras_moe.layers.hierarchical_moe import HierarchicalMoE
from keras_moe.layers.mixture_of_models import MixtureOfModels
from keras_moe.layers.modality_embedding import ModalityEmbedding
from keras_moe.layers.moe_block import MoEBlock
from keras_moe.layers.multitask import (
    CGC,
    PLE,
    MultiGateMoE,
    UncertaintyWeightedModel,
    UncertaintyWeighting,
)
from keras_moe.layers.routers import *  # noqa: F403
from keras_moe.layers.routers.base_router import BaseRouter, TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.layers.soft_moe import SoftMoE
from keras_moe.layers.transformer import (
    TransformerDecoderBlock,
    TransformerEncoderBlock,
)
from keras_moe.types import GatedUnit

__all__ = [
    "BaseRouter",
    "CGC",
    "ClippedSwiGLU",
    "Expert",
    "ExpertLayers",
    "GatedUnit",
    "HierarchicalMoE",
    "LearnedRouter",
    "MixtureOfModels",
    "MoEBlock",
    "ModalityEmbedding",
    "MultiGateMoE",
    "PLE",
    "SoftMoE",
    "TokenBatch",
    "TransformerDecoderBlock",
    "TransformerEncoderBlock",
    "UncertaintyWeightedModel",
    "UncertaintyWeighting",
]
__all__ += routers.__all__
