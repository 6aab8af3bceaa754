"""Floor 4: train on several devices, with the engines of each backend."""

from keras_moe.distribution.backup import BackupAndResume, load_backup
from keras_moe.distribution.data import DataShard, data_shard, local_shard
from keras_moe.distribution.environment import (
    initialize,
    process_count,
    process_index,
)
from keras_moe.distribution.estimates import Estimate, Plan
from keras_moe.distribution.jax_layouts import ExpertParallel, expert_parallel
from keras_moe.distribution.jobs import job_text
from keras_moe.distribution.launching import launch
from keras_moe.distribution.parallel import (
    data_parallel,
    gather_experts,
    shard_experts,
)
from keras_moe.distribution.plan_config import PlanConfig
from keras_moe.distribution.planning import estimate, plan
from keras_moe.distribution.ray_workers import launch_on_ray
from keras_moe.distribution.saving import save_model

__all__ = [
    "BackupAndResume",
    "DataShard",
    "Estimate",
    "ExpertParallel",
    "Plan",
    "PlanConfig",
    "data_parallel",
    "data_shard",
    "estimate",
    "expert_parallel",
    "gather_experts",
    "initialize",
    "job_text",
    "launch",
    "launch_on_ray",
    "load_backup",
    "local_shard",
    "plan",
    "process_count",
    "process_index",
    "save_model",
    "shard_experts",
]
