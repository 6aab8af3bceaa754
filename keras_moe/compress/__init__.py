"""Floor 3: smaller models from trained ones."""

from keras_moe.compress.prune_experts import prune_experts

__all__ = ["prune_experts"]
