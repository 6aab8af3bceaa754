"""Floor 1: auxiliary losses. Pure functions, float32 scalars."""

from keras_moe.losses.balance import (
    LOAD_BALANCING,
    balancing_loss,
    load_balancing_loss,
)
from keras_moe.losses.importance import importance_loss, load_loss
from keras_moe.losses.modality_entropy import (
    global_entropy_loss,
    local_entropy_loss,
)
from keras_moe.losses.sequence_balance import sequence_balancing_loss
from keras_moe.losses.tasks import TASK_KINDS, uncertainty_weighted_loss
from keras_moe.losses.z_loss import router_z_loss

__all__ = [
    "LOAD_BALANCING",
    "TASK_KINDS",
    "balancing_loss",
    "global_entropy_loss",
    "importance_loss",
    "load_balancing_loss",
    "load_loss",
    "local_entropy_loss",
    "router_z_loss",
    "sequence_balancing_loss",
    "uncertainty_weighted_loss",
]
