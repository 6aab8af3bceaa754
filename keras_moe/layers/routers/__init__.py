"""Routers: small layers, each around one function of `keras_moe.routing`.

`base_router.py` has their base class.
`__all__` lists the routers for users. `keras_moe.layers` and `keras_moe` export
the same names.
"""

from keras_moe.layers.routers.attention_router import AttentionRouter
from keras_moe.layers.routers.cosine_router import CosineRouter
from keras_moe.layers.routers.expert_choice_router import ExpertChoiceRouter
from keras_moe.layers.routers.fixed_routers import HashRouter, RuleRouter
from keras_moe.layers.routers.gshard_router import GShardRouter
from keras_moe.layers.routers.hierarchical_router import HierarchicalRouter
from keras_moe.layers.routers.modality_router import ModalityRouter
from keras_moe.layers.routers.noisy_top_k_router import NoisyTopKRouter
from keras_moe.layers.routers.pathway_router import PathwayRouter
from keras_moe.layers.routers.relu_router import ReLURouter
from keras_moe.layers.routers.router import Router
from keras_moe.layers.routers.sinkhorn_router import SinkhornRouter
from keras_moe.layers.routers.sparse_mixer_router import SparseMixerRouter
from keras_moe.layers.routers.switch_router import SwitchRouter
from keras_moe.layers.routers.top_p_router import TopPRouter

__all__ = [
    "AttentionRouter",
    "CosineRouter",
    "ExpertChoiceRouter",
    "GShardRouter",
    "HashRouter",
    "HierarchicalRouter",
    "ModalityRouter",
    "NoisyTopKRouter",
    "PathwayRouter",
    "ReLURouter",
    "Router",
    "RuleRouter",
    "SinkhornRouter",
    "SparseMixerRouter",
    "SwitchRouter",
    "TopPRouter",
]
