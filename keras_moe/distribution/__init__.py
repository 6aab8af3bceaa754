"""From one device to many, on the engines of each backend."""

from keras_moe.distribution.layouts import ExpertParallel, expert_parallel
from keras_moe.distribution.planning import (
    Estimate,
    Plan,
    PlanConfig,
    estimate,
    plan,
)

__all__ = [
    "Estimate",
    "ExpertParallel",
    "Plan",
    "PlanConfig",
    "estimate",
    "expert_parallel",
    "plan",
]
