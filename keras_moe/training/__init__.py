"""Floor 4: training methods for models with experts."""

from keras_moe.training.contrastive import ContrastiveModel, contrastive_loss
from keras_moe.training.fgm import FGM, adversarial_step
from keras_moe.training.fused_adam import FusedAdam
from keras_moe.training.masked_tokens import MaskedTokenModel, hide_tokens
from keras_moe.training.r_drop import RDrop
from keras_moe.training.router_learning import (
    RouterLearningRate,
    freeze_routers,
    unfreeze_routers,
)
from keras_moe.training.schedules import BalanceWarmUp
from keras_moe.training.search import hypermodel, search_space

__all__ = [
    "BalanceWarmUp",
    "ContrastiveModel",
    "FGM",
    "FusedAdam",
    "MaskedTokenModel",
    "RDrop",
    "RouterLearningRate",
    "adversarial_step",
    "contrastive_loss",
    "freeze_routers",
    "hide_tokens",
    "hypermodel",
    "search_space",
    "unfreeze_routers",
]
