"""Floor 4: make smaller models from trained ones."""

from keras_moe.compress.densifying import to_dense
from keras_moe.compress.distiller import Distiller, distill
from keras_moe.compress.magnitude import prune_weights
from keras_moe.compress.merged_router import MergedRouter
from keras_moe.compress.merging import merge_experts
from keras_moe.compress.pruning import prune_experts

__all__ = [
    "Distiller",
    "MergedRouter",
    "distill",
    "merge_experts",
    "prune_experts",
    "prune_weights",
    "to_dense",
]
