"""Router in two stages: groups of experts, then experts.

T tokens, D hidden_dim, E experts, G groups, M top_k_groups, K top_k.
"""

from typing import Any

import keras

from keras_moe import checks, routing
from keras_moe.checks import routing_checks
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment


@keras.saving.register_keras_serializable(package="keras_moe")
class HierarchicalRouter(LearnedRouter):
    """Chooses groups of experts for each token, then experts in these groups.

    The weight of an expert is the weight of its group times the weight of the
    expert within the group. `Router(num_groups=G)` ranks a group by its best
    experts; here a group has its own score, and an expert competes only with
    the experts of its group.

    Args:
        num_experts: Int, E. Number of experts in all groups together.
        num_groups: Int, G, a divisor of E. The experts of group g start at
            `g * E / G`.
        top_k: Int, K. Experts per token, in all groups together. 2 by default.
        top_k_groups: Int, M. Groups per token, a divisor of K: each gives
            K / M experts. 1 by default.
        normalize_weights: Bool. Whether a stage that chooses several divides
            their probabilities by their sum. A stage that chooses one keeps
            its probability, from which it learns. True by default.
        **kwargs: Arguments of `LearnedRouter`. Jitter, noise, and bias are in
            both stages.

    Weights: `kernel` `(D, E + G)`, the scores of the groups last; `bias`
    `(E + G,)`; `expert_enabled` `(E,)`.

    If experts are switched off, a group may have fewer than K / M left. Tokens
    that choose this group then have fewer experts.

    Reference: Shazeer et al. 2017, "Outrageously Large Neural Networks",
    appendix B; Jordan & Jacobs 1994.

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
        **kwargs: Any,
    ):
        super().__init__(num_experts, **kwargs)
        self.top_k = checks.check_top_k(top_k, num_experts)
        self.num_groups, self.top_k_groups = routing_checks.check_groups(
            num_experts, top_k, num_groups, top_k_groups
        )
        routing_checks.check_even_groups(top_k, top_k_groups)
        self.normalize_weights = checks.check_bool(
            "normalize_weights", normalize_weights
        )

    @property
    def num_columns(self) -> int:
        """E + G, the width of the scores of both stages."""
        return self.num_experts + self.num_groups

    def route(self, batch: TokenBatch) -> Assignment:
        """Choose groups, then experts in these groups."""
        logits = self.logits(batch)
        return routing.hierarchical_assignment(
            logits[:, self.num_experts :],
            logits[:, : self.num_experts],
            self.top_k,
            self.top_k_groups,
            self.normalize_weights,
            batch.conditions,
        )
