"""Mixtures with one output per task, and learned weights of task losses."""

from keras_moe.layers.multitask.cgc import CGC
from keras_moe.layers.multitask.multi_gate import MultiGateMoE
from keras_moe.layers.multitask.ple import PLE
from keras_moe.layers.multitask.uncertainty import UncertaintyWeighting
from keras_moe.layers.multitask.weighted_model import UncertaintyWeightedModel

__all__ = [
    "CGC",
    "PLE",
    "MultiGateMoE",
    "UncertaintyWeightedModel",
    "UncertaintyWeighting",
]
