"""From one device to many, on the engines of each backend."""

from keras_moe.distribution.jax_layouts import ExpertParallel, expert_parallel
from keras_moe.distribution.parallel import (
    data_parallel,
    gather_experts,
    shard_experts,
)
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
    "data_parallel",
    "estimate",
    "expert_parallel",
    "gather_experts",
    "plan",
    "shard_experts",
]
