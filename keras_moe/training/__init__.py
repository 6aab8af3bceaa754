"""Floor 3: what helps models with experts to learn, and not to overfit."""

from keras_moe.training.routers import (
    RouterLearningRate,
    freeze_routers,
    unfreeze_routers,
)
from keras_moe.training.schedules import BalanceWarmUp

__all__ = [
    "BalanceWarmUp",
    "RouterLearningRate",
    "freeze_routers",
    "unfreeze_routers",
]
