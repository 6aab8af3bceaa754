"""Top-p router: each token gets as many experts as it needs."""

from typing import Any

import keras

from keras_moe import checks, routing
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment


@keras.saving.register_keras_serializable(package="keras_moe")
class TopPRouter(LearnedRouter):
    """Chooses the best experts of each token until their probabilities reach p.

    Args:
        num_experts: Int, E.
        top_p: Float, p, above 0 and at most 1. 0.4 (the default) is the
            paper's.
        top_k: Int. Upper bound of the experts per token. `None` (the default)
            is 4, or E if E is below 4. A block's capacity is a share of
            `top_k * T` pairs, since the mean is not known in advance.
        normalize_weights: Bool. Whether a token's weights are divided by their
            sum. False (the default) keeps the probabilities, as the paper
            does.
        entropy_weight: Float, 0 or above. Weight of the entropy loss (eq. 7),
            without which the router spreads its probability and chooses more
            and more experts. In training, the loss is the mean over the tokens
            of all replicas. 1e-4 (the default) is the paper's.
        **kwargs: Arguments of `LearnedRouter`.

    Reference: Huang et al. 2024, "Harder Tasks Need More Experts", eq. 4-7.

    Example:

    ```python
    router = keras_moe.TopPRouter(4, top_p=0.7)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    arguments = (
        *LearnedRouter.arguments,
        "top_p",
        "top_k",
        "normalize_weights",
        "entropy_weight",
    )

    causal = True
    has_loss = True

    def __init__(
        self,
        num_experts: int,
        top_p: float = 0.4,
        top_k: int | None = None,
        normalize_weights: bool = False,
        entropy_weight: float = 1e-4,
        **kwargs: Any,
    ):
        super().__init__(num_experts, **kwargs)
        self.top_p = checks.check_above("top_p", top_p, 0, 1)
        if top_k is None:
            top_k = min(4, num_experts)
        self.top_k = checks.check_top_k(top_k, num_experts)
        self.normalize_weights = checks.check_bool(
            "normalize_weights", normalize_weights
        )
        self.entropy_weight = checks.check_weight(
            "entropy_weight", entropy_weight
        )

    def route(self, batch: TokenBatch) -> Assignment:
        """Choose experts until their probabilities reach p."""
        return routing.top_p_assignment(
            self.logits(batch),
            self.top_p,
            self.top_k,
            self.normalize_weights,
            self.entropy_weight,
            batch.conditions,
            over_replicas=batch.training,
        )
