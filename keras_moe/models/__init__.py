"""Floor 4: whole models around mixture-of-experts blocks.

Each is a `keras.Model` with the arguments of `Blocks` and a few of its own.
`num_experts=None` builds its dense twin of equal active FLOPs.
"""

from keras_moe.models.classifier import MoEClassifier
from keras_moe.models.embedding_layers import (
    MeanPooling,
    PositionEmbedding,
    TokenEmbedding,
)
from keras_moe.models.language_model import MoELanguageModel
from keras_moe.models.moe_model import MoEModel
from keras_moe.models.samplers import Greedy, Random, TopK, TopP
from keras_moe.models.seq2seq import MoESeq2Seq
from keras_moe.models.tagger import MoETagger
from keras_moe.models.transformer_blocks import Blocks
from keras_moe.models.vision import MoEVisionClassifier

__all__ = [
    "Blocks",
    "Greedy",
    "MeanPooling",
    "MoEClassifier",
    "MoELanguageModel",
    "MoEModel",
    "MoESeq2Seq",
    "MoETagger",
    "MoEVisionClassifier",
    "PositionEmbedding",
    "Random",
    "TokenEmbedding",
    "TopK",
    "TopP",
]
