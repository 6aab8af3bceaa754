"""From one device to many, on the engines of each backend."""

from keras_moe.distribution.layouts import ExpertParallel, expert_parallel

__all__ = ["ExpertParallel", "expert_parallel"]
