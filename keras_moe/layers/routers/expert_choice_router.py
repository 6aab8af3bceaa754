"""Experts choose their tokens.

T tokens, E experts, C places an expert, P = E * C routed pairs.
"""

import warnings

import keras
from keras import ops

from keras_moe import checks, kernels, routing
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment


@keras.saving.register_keras_serializable(package="keras_moe")
class ExpertChoiceRouter(LearnedRouter):
    """Each expert takes its `C = ceil(c * T / E)` best tokens of the batch
    (Zhou et al. 2022, "Mixture-of-Experts with Expert Choice Routing").

    E counts the experts that are on. It counts all of them on JAX, under XLA,
    in an export, and on a GPU under PyTorch, where the number of pairs must
    not depend on a value.

    The load is even by construction and needs no loss. A token gets as many
    experts as want it, none included; it should have a residual connection.

    **It sees the future**: whether an expert takes a token depends on all
    tokens of the batch, later ones and those of other sequences too. In a
    causal language model it leaks what is to be predicted, and at generation
    it has no batch to choose from. The constructor warns of that, unless
    `bidirectional` is True; loading and cloning do not warn again.

    Args:
        num_experts: E.
        experts_per_token: c, experts a token has in the mean, above 0, at
            most E; the paper's capacity factor. 2 is its default.
        bidirectional: whether the model is no causal one; silences the
            warning.
        **kwargs: of `LearnedRouter`.

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
        **kwargs,
    ):
        super().__init__(num_experts, **kwargs)
        self.experts_per_token = checks.check_above(
            "experts_per_token", experts_per_token, 0, num_experts
        )
        self.top_k = self.experts_per_token  # type: ignore[assignment]
        self.bidirectional = checks.check_bool("bidirectional", bidirectional)
        if not self.bidirectional:
            warnings.warn(
                "ExpertChoiceRouter looks at all tokens of the batch, later "
                "ones too: do not use it in a causal model. Pass "
                "bidirectional=True where tokens may see each other.",
                stacklevel=2,
            )

    @classmethod
    def from_config(cls, config: dict):
        """Build the router that `get_config` describes, without a warning."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "ExpertChoiceRouter looks at all")
            return super().from_config(config)

    @property
    def pairs_per_token(self) -> None:
        """None: a token has any number of experts."""
        return None

    @property
    def least_experts(self) -> int:
        """One expert must be on."""
        return 1

    def route(self, batch: TokenBatch) -> Assignment:
        """Lets the experts choose."""
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
