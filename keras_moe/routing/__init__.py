"""Floor 1: routing algorithms. Pure functions.

Each algorithm is in a file of its own. It is a function of logits or scores
and of the batch's `Conditions`, and returns an `Assignment`: which token goes
to which expert, with what weight.
"""

from keras_moe.routing.assignment import Conditions, token_choice
from keras_moe.routing.capacity import (
    PRIORITIES,
    apply_capacity,
    expert_capacity,
)
from keras_moe.routing.expert_choice import expert_choice_assignment
from keras_moe.routing.fixed import (
    cyclic_scores,
    fixed_assignment,
    hash_scores,
    rule_scores,
)
from keras_moe.routing.hierarchical import hierarchical_assignment
from keras_moe.routing.modality import modality_assignment
from keras_moe.routing.pair_weights import (
    dense_weights,
    null_weight,
    pair_scores,
    scale_weights,
)
from keras_moe.routing.relu import next_l1_coefficient, relu_assignment
from keras_moe.routing.second_expert import (
    SECOND_EXPERTS,
    drop_weak_second,
    first_choices,
)
from keras_moe.routing.sequence_capacity import apply_sequence_capacity
from keras_moe.routing.sinkhorn import sinkhorn, sinkhorn_assignment
from keras_moe.routing.soft import (
    mix_experts,
    soft_slot_logits,
    soft_weights,
)
from keras_moe.routing.sparse_mixer import sparse_mixer_assignment
from keras_moe.routing.top_k import (
    GROUP_SCORES,
    SCORINGS,
    balanced_bias,
    keep_best_groups,
    top_k_assignment,
)
from keras_moe.routing.top_p import top_p_assignment
from keras_moe.types import Assignment

__all__ = [
    "Assignment",
    "Conditions",
    "GROUP_SCORES",
    "PRIORITIES",
    "SCORINGS",
    "SECOND_EXPERTS",
    "apply_capacity",
    "apply_sequence_capacity",
    "balanced_bias",
    "cyclic_scores",
    "dense_weights",
    "drop_weak_second",
    "expert_capacity",
    "expert_choice_assignment",
    "first_choices",
    "fixed_assignment",
    "hash_scores",
    "hierarchical_assignment",
    "keep_best_groups",
    "mix_experts",
    "modality_assignment",
    "next_l1_coefficient",
    "null_weight",
    "pair_scores",
    "relu_assignment",
    "rule_scores",
    "scale_weights",
    "sinkhorn",
    "sinkhorn_assignment",
    "soft_slot_logits",
    "soft_weights",
    "sparse_mixer_assignment",
    "token_choice",
    "top_k_assignment",
    "top_p_assignment",
]
