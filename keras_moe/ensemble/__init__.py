"""Floor 4: several models as one, and how far their mistakes differ."""

from keras_moe.ensemble.arguments import METHODS
from keras_moe.ensemble.combiners import StackingHead
from keras_moe.ensemble.diversity import (
    disagreement,
    double_fault,
    mean_over_pairs,
    q_statistic,
)
from keras_moe.ensemble.model import Ensemble
from keras_moe.ensemble.snapshots import CyclicCosine

__all__ = [
    "METHODS",
    "CyclicCosine",
    "Ensemble",
    "StackingHead",
    "disagreement",
    "double_fault",
    "mean_over_pairs",
    "q_statistic",
]
