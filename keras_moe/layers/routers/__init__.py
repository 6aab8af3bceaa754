"""The routers: small layers that own weights and name one function of
`keras_moe.routing` each. `base.py` has what they share.

`__all__` lists the routers that users pick. `keras_moe.layers` and `keras_moe`
take their names from it.
"""

from keras_moe.layers.routers.attention import AttentionRouter
from keras_moe.layers.routers.cosine import CosineRouter
from keras_moe.layers.routers.expert_choice import ExpertChoiceRouter
from keras_moe.layers.routers.fixed import HashRouter, RuleRouter
from keras_moe.layers.routers.gshard import GShardRouter
from keras_moe.layers.routers.hierarchical import HierarchicalRouter
from keras_moe.layers.routers.modality import ModalityRouter
from keras_moe.layers.routers.noisy_top_k import NoisyTopKRouter
from keras_moe.layers.routers.pathway import PathwayRouter
from keras_moe.layers.routers.relu import ReLURouter
from keras_moe.layers.routers.router import Router
from keras_moe.layers.routers.sinkhorn import SinkhornRouter
from keras_moe.layers.routers.switch import SwitchRouter
from keras_moe.layers.routers.top_p import TopPRouter

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
    "SwitchRouter",
    "TopPRouter",
]
