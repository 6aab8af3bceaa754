"""A router in two stages.

T tokens, D hidden_dim, E experts, G groups, M top_k_groups, K top_k.
"""

import keras

from keras_moe import checks, routing
from keras_moe.checks.routing_checks import (
    check_even_groups,
    check_groups,
)
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment


@keras.saving.register_keras_serializable(package="keras_moe")
class HierarchicalRouter(LearnedRouter):
    """Chooses groups of experts for each token, then experts inside them
    (Shazeer et al. 2017, appendix B; Jordan & Jacobs 1994).

    A weight is the group's times the expert's within the group. Where
    `Router(num_groups=G)` ranks a group by its best experts, here a group has
    a score of its own, and an expert competes only inside its group.

    Args:
        num_experts: E, in all groups together.
        num_groups: G, a divisor of E; group g has the experts from
            `g * E / G`.
        top_k: K, experts of a token in all.
        top_k_groups: M, groups of a token, a divisor of K: each gives K / M
            experts.
        normalize_weights: whether a stage that chooses several divides their
            probabilities by the sum. A stage that chooses one leaves the
            probability, from which it learns.
        **kwargs: of `LearnedRouter`. Jitter, noise and bias are in both
            stages.

    Weights: `kernel` `(D, E + G)`, the groups' scores last; `bias` `(E + G,)`;
    `expert_enabled` `(E,)`.

    With experts switched off, a group may have fewer than K / M left: a token
    that chose it then has fewer experts.

    Example:

    ```python
    router = keras_moe.HierarchicalRouter(4, num_groups=2, top_k=2)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    causal = True
    arguments = (
        *LearnedRouter.arguments,
        "num_groups",
        "top_k",
        "top_k_groups",
        "normalize_weights",
    )

    def __init__(
        self,
        num_experts: int,
        num_groups: int,
        top_k: int = 2,
        top_k_groups: int = 1,
        normalize_weights: bool = True,
        **kwargs,
    ):
        super().__init__(num_experts, **kwargs)
        self.top_k = checks.check_top_k(top_k, num_experts)
        self.num_groups, self.top_k_groups = check_groups(
            num_experts, top_k, num_groups, top_k_groups
        )
        check_even_groups(top_k, top_k_groups)
        self.normalize_weights = checks.check_bool(
            "normalize_weights", normalize_weights
        )

    @property
    def num_columns(self) -> int:
        """E + G, the width of both stages' scores."""
        return self.num_experts + self.num_groups

    def route(self, batch: TokenBatch) -> Assignment:
        """Chooses groups, then experts."""
        logits = self.logits(batch)
        return routing.hierarchical_assignment(
            logits[:, self.num_experts :],
            logits[:, : self.num_experts],
            self.top_k,
            self.top_k_groups,
            self.normalize_weights,
            batch.conditions,
        )
