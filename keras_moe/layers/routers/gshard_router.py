"""Router of GShard: the best expert, and the second unless it is weak.

T tokens, K = 2.
"""

from typing import Any

import keras
from keras import ops

from keras_moe import checks, routing
from keras_moe.layers.routers.base_router import TokenBatch, without
from keras_moe.layers.routers.router import Router
from keras_moe.routing import Assignment
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class GShardRouter(Router):
    """Sends each token to its best expert, and to its second unless it is weak.

    The load-balancing loss of the block counts first choices only (algorithm
    1, lines 9 and 13), which are never dropped at random.

    Args:
        num_experts: Int, E, 2 or more.
        second_expert: `"random"` (the default) keeps the second expert, of
            weight `w2`, with probability `min(1, w2 / threshold)` in training
            and always in evaluation; `"threshold"` keeps it if
            `w2 > threshold`; `"all"` always keeps it.
        threshold: Float above 0 and at most 1. 0.5 (the default) is GShard's
            (algorithm 1, line 18), 0.2 ST-MoE's (Zoph et al. 2022).
        **kwargs: Arguments of `Router` except `top_k` and
            `normalize_weights`.

    Reference: Lepikhin et al. 2020, "GShard", algorithm 1.

    Example:

    ```python
    router = keras_moe.GShardRouter(4)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    fixed_arguments = (*Router.fixed_arguments, "top_k", "normalize_weights")
    arguments = (
        *without(Router.arguments, *fixed_arguments),
        "second_expert",
        "threshold",
    )

    def __init__(
        self,
        num_experts: int,
        second_expert: str = "random",
        threshold: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(num_experts, top_k=2, normalize_weights=True, **kwargs)
        self.second_expert = checks.check_choice(
            "second_expert", second_expert, routing.SECOND_EXPERTS
        )
        self.threshold = checks.check_above("threshold", threshold, 0, 1)

    balances_first_choice = True

    def choose(self, logits: Tensor, batch: TokenBatch) -> Assignment:
        """Choose two experts and drop the second if it is weak."""
        assignment = super().choose(logits, batch)
        if batch.conditions.replay is not None:  # it has dropped some already
            return assignment
        if self.second_expert == "threshold":
            return routing.drop_weak_second(assignment, self.threshold)
        if self.second_expert == "all" or not batch.training:
            return assignment
        noise = keras.random.uniform(
            ops.shape(logits)[:1], dtype="float32", seed=self.seed_generator
        )
        return routing.drop_weak_second(assignment, self.threshold, noise)
