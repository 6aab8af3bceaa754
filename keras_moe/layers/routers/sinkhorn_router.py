"""Router that balances the load by optimal transport."""

from typing import Any

import keras

from keras_moe import checks, routing
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment


@keras.saving.register_keras_serializable(package="keras_moe")
class SinkhornRouter(LearnedRouter):
    """Chooses experts by a balanced transport plan in training (S-BASE).

    The plan gives every expert nearly the same number of tokens, without a
    loss. The weight is the probability of the logits. In evaluation the K
    largest logits are chosen, as in the paper and in BASE (Lewis et al. 2021),
    so that a token does not depend on the batch.

    Args:
        num_experts: Int, E.
        top_k: Int, K. Experts per token. 1 (the default) is the papers'.
        num_iterations: Int, 1 or more. Iterations of Sinkhorn's scaling. 16 by
            default.
        **kwargs: Arguments of `LearnedRouter`.

    Reference: Clark et al. 2022, "Unified Scaling Laws for Routed Language
    Models", section 2.2.

    Example:

    ```python
    router = keras_moe.SinkhornRouter(4, top_k=1)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    arguments = (*LearnedRouter.arguments, "top_k", "num_iterations")
    load_balancing_weight = 0.0

    def __init__(
        self,
        num_experts: int,
        top_k: int = 1,
        num_iterations: int = 16,
        **kwargs: Any,
    ):
        super().__init__(num_experts, **kwargs)
        self.top_k = checks.check_top_k(top_k, num_experts)
        self.num_iterations = checks.check_positive_int(
            "num_iterations", num_iterations
        )

    def route(self, batch: TokenBatch) -> Assignment:
        """Choose experts by the plan in training, by the logits otherwise."""
        return routing.sinkhorn_assignment(
            self.logits(batch),
            self.top_k,
            self.num_iterations if batch.training else None,
            batch.conditions,
        )
