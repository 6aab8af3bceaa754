"""Router in which experts choose their tokens.

T tokens, E experts, C places per expert, P = E * C routed pairs.
"""

import warnings
from typing import Any, Self

import keras
from keras import ops

from keras_moe import checks, kernels, routing
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment


@keras.saving.register_keras_serializable(package="keras_moe")
class ExpertChoiceRouter(LearnedRouter):
    """Lets each expert choose its `C = ceil(c * T / E)` best tokens of a batch.

    E counts the experts that are on. On JAX, under XLA, in an export, and on a
    GPU under PyTorch, it counts all experts, because the number of pairs must
    not depend on values.

    The load is even by construction and needs no loss. A token may have any
    number of experts, also none, so the block should have a residual
    connection.

    **Not causal**: whether an expert chooses a token depends on all tokens of
    the batch, including later ones and those of other sequences. A causal
    language model would read the tokens that it predicts, and when it
    generates there is no batch to choose from. The constructor warns of that
    unless `bidirectional` is True; loading and cloning do not warn again.

    Args:
        num_experts: Int, E.
        experts_per_token: Float, c, above 0 and at most E. Mean number of
            experts per token, the capacity factor of the paper. 2 by default.
        bidirectional: Bool. Declares that the model is not causal, which
            silences the warning. False by default.
        **kwargs: Arguments of `LearnedRouter`.

    Reference: Zhou et al. 2022, "Mixture-of-Experts with Expert Choice
    Routing".

    Example:

    ```python
    router = keras_moe.ExpertChoiceRouter(4, bidirectional=True)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    arguments = (
        *LearnedRouter.arguments,
        "experts_per_token",
        "bidirectional",
    )
    load_balancing_weight = 0.0

    def __init__(
        self,
        num_experts: int,
        experts_per_token: float = 2.0,
        bidirectional: bool = False,
        **kwargs: Any,
    ):
        super().__init__(num_experts, **kwargs)
        self.experts_per_token = checks.check_above(
            "experts_per_token", experts_per_token, 0, num_experts
        )
        self.top_k = self.experts_per_token  # type: ignore[assignment]
        self.bidirectional = checks.check_bool("bidirectional", bidirectional)
        if not self.bidirectional:
            warnings.warn(
                "ExpertChoiceRouter reads all tokens of the batch, also later "
                "ones: do not use it in a causal model. Pass "
                "bidirectional=True if tokens may read each other.",
                stacklevel=2,
            )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the router that `get_config` describes, without a warning."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "ExpertChoiceRouter reads all")
            router: Self = super().from_config(config)
        return router

    @property
    def pairs_per_token(self) -> None:
        """None: the number of experts differs from token to token."""
        return None

    @property
    def least_experts(self) -> int:
        """1: tokens need no expert of their own."""
        return 1

    def route(self, batch: TokenBatch) -> Assignment:
        """Let each expert choose its tokens."""
        num_on = ops.sum(ops.cast(batch.conditions.available, "int32"))
        capacity = routing.expert_capacity(
            ops.shape(batch.tokens)[0],
            kernels.shape_of_count(num_on, self.num_experts),
            self.experts_per_token,
            1.0,
        )
        return routing.expert_choice_assignment(
            self.logits(batch), capacity, batch.conditions
        )
