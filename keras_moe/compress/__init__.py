"""Floor 3: smaller models from trained ones."""

from keras_moe.compress.merge_experts import merge_experts
from keras_moe.compress.merged_router import MergedRouter
from keras_moe.compress.prune_experts import prune_experts
from keras_moe.compress.prune_weights import prune_weights
from keras_moe.compress.to_dense import to_dense

__all__ = [
    "MergedRouter",
    "merge_experts",
    "prune_experts",
    "prune_weights",
    "to_dense",
]
