"""As many experts as a token needs."""

import keras

from keras_moe import checks, routing
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment


@keras.saving.register_keras_serializable(package="keras_moe")
class TopPRouter(LearnedRouter):
    """Sends each token to its best experts until their probabilities reach p
    (Huang et al. 2024, "Harder Tasks Need More Experts").

    Args:
        num_experts: E.
        top_p: p, above 0, at most 1; 0.4 is the paper's.
        top_k: Int. The most experts per token. `None` (the default) is 4, or
            E if that is less. A block's capacity is a share of
            `top_k * T` pairs, since the mean is not known beforehand.
        normalize_weights: whether a token's weights are divided by their sum;
            the paper leaves the probabilities.
        entropy_weight: of the entropy loss (eq. 7), without which the router
            spreads its probability and takes ever more experts; 1e-4 is the
            paper's. In training the loss is the mean over the tokens of all
            replicas.
        **kwargs: of `LearnedRouter`.

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
        **kwargs,
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
        """Takes experts until p is reached."""
        return routing.top_p_assignment(
            self.logits(batch),
            self.top_p,
            self.top_k,
            self.normalize_weights,
            self.entropy_weight,
            batch.conditions,
            over_replicas=batch.training,
        )
