"""A classifier of token sequences.

B batch, S sequence length.
"""

from typing import Any

import keras
from keras.optimizers.schedules import LearningRateSchedule

from keras_moe import checks
from keras_moe.layers import BaseRouter, quantization
from keras_moe.models import embedding_layers
from keras_moe.models.encoding import encoded
from keras_moe.models.moe_model import MoEModel
from keras_moe.models.transformer_blocks import Blocks
from keras_moe.types import Activation


@keras.saving.register_keras_serializable(package="keras_moe")
class MoEClassifier(MoEModel):
    """Classify token ids `(B, S)` as logits float32 `(B, num_classes)`.

    The model has pre-norm encoder blocks and takes the mean over the tokens.
    Id 0 is padding, which does not change the logits. Train it with
    `SparseCategoricalCrossentropy(from_logits=True)`.

    Args:
        vocabulary_size: Positive int. Number of token ids, padding included.
        num_classes: Positive int. Number of classes.
        max_length: Positive int. Length of the longest sequence with learned
            positions; rotary positions have no limit.
        num_layers: Positive int. Number of transformer blocks.
        hidden_dim: Positive int. D, the width of the model, a multiple of
            `num_heads`.
        num_heads: Positive int. Number of heads of each attention layer.
        intermediate_dim: Positive int. F, the inner width of each expert.
        num_experts: Positive int or None. E, the number of experts of each MoE
            block. `None` builds the dense twin, which `Blocks` describes.
        top_k: Positive int. K, the number of experts per token. Defaults to 2.
            Ignored if `router` is passed, which has its own.
        moe_every: int in 1 ... `num_layers`. Every n-th block is an MoE block
            and the others are dense. Defaults to 1: all are MoE blocks.
        num_key_value_heads: Divisor of `num_heads`, or None. Number of heads of
            keys and values (grouped-query attention). `None` (the default)
            means `num_heads`.
        dropout: float in 0 <= rate < 1. Dropout rate of the output of each part
            of a block. Defaults to 0.
        activation: str, function, or None. Activation of the experts. Defaults
            to `"gelu"`. `None` means a linear expert.
        gated: bool. Whether the experts have a gate, as in SwiGLU. Defaults
            to `False`.
        capacity_factor: float above 0, or None. Limits the tokens per expert
            in training. `None` (the default) never drops tokens.
        shared_expert_dim: Positive int or None. Width of one more expert that
            every token uses. `None` (the default) adds none.
        router: A router, of which each block gets a copy with weights of its
            own. `None` (the default) means `Router(num_experts, top_k)`.
        load_balancing_weight: float of 0 or above, learning rate schedule, or
            None. Weight of the load-balancing loss. `None` (the default) means
            the router's default.
        positions: str. `"rotary"` (the default) rotates queries and keys;
            `"learned"` adds a learned vector to each embedding.
        seed: int or None. Seed of dropout, jitter, and other random draws in
            training. `None` (the default) draws one. The initial weights follow
            `keras.utils.set_random_seed`.
        name: str or None. Name of the model. `None` (the default) derives it
            from the class name.
        dtype: dtype policy of every layer, or None. `None` (the default) means
            Keras's global policy.
        trainable: bool. Whether training updates the weights. Defaults to
            `True`.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range.

    Example:

    ```python
    model = keras_moe.models.MoEClassifier(
        vocabulary_size=100,
        max_length=12,
        num_classes=3,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        num_experts=4,
    )
    logits = model(np.array([[5, 8, 2, 0]]))  # 0 is padding
    ```
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_classes: int,
        max_length: int,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        *,
        num_layers: int,
        hidden_dim: int,
        num_heads: int,
        intermediate_dim: int,
        num_experts: int | None,
        top_k: int = 2,
        moe_every: int = 1,
        num_key_value_heads: int | None = None,
        dropout: float = 0.0,
        activation: str | Activation | None = "gelu",
        gated: bool = False,
        capacity_factor: float | None = None,
        shared_expert_dim: int | None = None,
        router: BaseRouter | None = None,
        load_balancing_weight: float | LearningRateSchedule | None = None,
        positions: str = "rotary",
        seed: int | None = None,
    ):
        num_classes = checks.check_positive_int("num_classes", num_classes)
        vocabulary_size, max_length = embedding_layers.check_sizes(
            vocabulary_size, max_length
        )
        built = Blocks.from_arguments(locals())
        token_ids, x, mask = encoded(vocabulary_size, max_length, built)
        x = embedding_layers.MeanPooling(name="pooling", dtype=built.dtype)(
            x, mask=mask
        )
        head = keras.layers.Dense(
            num_classes, name="head", dtype=quantization.float32_head(dtype)
        )
        arguments = {
            "vocabulary_size": vocabulary_size,
            "num_classes": num_classes,
            "max_length": max_length,
            **built.arguments,
        }
        super().__init__(token_ids, head(x), arguments, name, dtype, trainable)
