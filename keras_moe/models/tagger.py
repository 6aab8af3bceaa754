"""A tagger of tokens.

B batch, S sequence length.
"""

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
class MoETagger(MoEModel):
    """Token ids `(B, S)` to logits float32 `(B, S, num_tags)`.

    Pre-norm encoder blocks and one linear map. Id 0 is padding: it changes
    no other token, and counts in no loss or metric that `compile` adds.

    Args:
        vocabulary_size: number of ids, padding included.
        num_tags: of the logits.
        max_length: the longest sequence; it matters to learned positions.
        num_layers: int. Number of transformer blocks.
        hidden_dim: int. D, the width of the model, a multiple of `num_heads`.
        num_heads: int. Number of heads of each attention layer.
        intermediate_dim: int. F, the inner width of each expert.
        num_experts: int or None. E, the number of experts of each MoE block.
            `None` builds the dense twin, which `Blocks` describes.
        top_k: int. K, the number of experts per token. Defaults to 2. A
            `router` brings its own.
        moe_every: int. Every n-th block is an MoE block and the others are
            dense. Defaults to 1: all are MoE blocks.
        num_key_value_heads: int or None. Number of heads of keys and values
            (grouped-query attention). `None` (the default) means `num_heads`.
        dropout: float. Dropout rate of the output of each part of a block.
            Defaults to 0.
        activation: str or function. Activation of the experts.
        gated: bool. Whether the experts have a gate, as in SwiGLU. Defaults
            to `False`.
        capacity_factor: float or None. Limits the tokens per expert in
            training. `None` (the default) never drops tokens.
        shared_expert_dim: int or None. Width of one more expert that every
            token uses. `None` (the default) adds none.
        router: A router, of which each block gets a copy with weights of its
            own. `None` (the default) means `Router(num_experts, top_k)`.
        load_balancing_weight: float, learning rate schedule, or None. Weight
            of the load-balancing loss. `None` means the router's default.
        positions: str. `"rotary"` (the default) rotates queries and keys;
            `"learned"` adds a learned vector to each embedding.
        seed: int or None. Seed of dropout, jitter, and the like. The initial
            weights follow `keras.utils.set_random_seed`.
        name: str or None. Name of the model.
        dtype: dtype policy of every layer. `None` means Keras's global policy.
        trainable: bool. Whether training updates the weights.

    Raises:
        ValueError: for an argument out of its range.

    Example:

    ```python
    model = keras_moe.models.MoETagger(
        vocabulary_size=100,
        max_length=12,
        num_tags=5,
        num_layers=2,
        hidden_dim=16,
        num_heads=2,
        intermediate_dim=32,
        num_experts=4,
    )
    logits = model(np.array([[5, 8, 2, 0]]))  # (1, 4, 5)
    ```
    """

    def __init__(
        self,
        vocabulary_size: int,
        num_tags: int,
        max_length: int,
        name: str | None = None,
        dtype=None,
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
        num_tags = checks.check_positive_int("num_tags", num_tags)
        vocabulary_size, max_length = embedding_layers.check_sizes(
            vocabulary_size, max_length
        )
        built = Blocks.from_arguments(locals())
        token_ids, x, _ = encoded(vocabulary_size, max_length, built)
        head = keras.layers.Dense(
            num_tags, name="head", dtype=quantization.float32_head(dtype)
        )
        arguments = {
            "vocabulary_size": vocabulary_size,
            "num_tags": num_tags,
            "max_length": max_length,
            **built.arguments,
        }
        super().__init__(token_ids, head(x), arguments, name, dtype, trainable)
