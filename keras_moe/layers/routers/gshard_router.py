"""GShard's router: a second expert only where it is worth it.

T tokens, K = 2.
"""

import keras
from keras import ops

from keras_moe import checks, routing
from keras_moe.layers.routers.base_router import TokenBatch, without
from keras_moe.layers.routers.router import Router
from keras_moe.routing import Assignment
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class GShardRouter(Router):
    """Sends each token to its best expert, and maybe to its second.

    The block's load-balancing loss counts first choices alone (Lepikhin et
    al. 2020, algorithm 1, lines 9 and 13), which no draw drops.

    Args:
        num_experts: E, 2 or more.
        second_expert: `"random"` keeps the second in training with
            probability `min(1, w2 / threshold)` and always in evaluation;
            `"threshold"` keeps it where `w2 > threshold`; `"all"` always.
        threshold: above 0, at most 1. 0.5 is GShard's (Lepikhin et al. 2020,
            algorithm 1, line 18), 0.2 ST-MoE's (Zoph et al. 2022).
        **kwargs: of `Router`, without `top_k` and `normalize_weights`.

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
        **kwargs,
    ):
        super().__init__(num_experts, top_k=2, normalize_weights=True, **kwargs)
        self.second_expert = checks.check_choice(
            "second_expert", second_expert, routing.SECOND_EXPERTS
        )
        self.threshold = checks.check_above("threshold", threshold, 0, 1)

    balances_first_choice = True

    def choose(self, logits: Tensor, batch: TokenBatch) -> Assignment:
        """Chooses two and drops the second where it is weak."""
        assignment = super().choose(logits, batch)
        if batch.conditions.replay is not None:  # which dropped some already
            return assignment
        if self.second_expert == "threshold":
            return routing.drop_weak_second(assignment, self.threshold)
        if self.second_expert == "all" or not batch.training:
            return assignment
        noise = keras.random.uniform(
            ops.shape(logits)[:1], dtype="float32", seed=self.seed_generator
        )
        return routing.drop_weak_second(assignment, self.threshold, noise)
