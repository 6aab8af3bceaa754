"""Router without a discrete choice.

T tokens, E experts, K top_k, M max_experts.
"""

from typing import Any

import keras
import numpy as np

from keras_moe import checks, kernels, routing
from keras_moe.checks import router_checks
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment
from keras_moe.types import Shape


@keras.saving.register_keras_serializable(package="keras_moe")
class ReLURouter(LearnedRouter):
    """Uses every expert whose logit is above zero, with that logit as weight.

    The outputs are continuous in the logits: an expert starts and ends with
    weight zero. Tokens have different numbers of experts. An L1 loss, balanced
    over the experts (eq. 10-11), keeps their mean near K; its coefficient is
    adapted in each training step (eq. 8). In training, both cover the tokens
    of all replicas. The paper has one coefficient for all layers of a model;
    here each router has its own, since it cannot read the load of others. At
    first, about half of all experts are active, so early steps are more
    expensive than later ones.

    Args:
        num_experts: Int, E.
        top_k: Int, K. Target of the mean number of experts per token. 2 by
            default.
        max_experts: Int, M. Upper bound of the experts per token; those with
            the largest logits are kept. `None` (the default) is E, as in the
            paper, which sorts T * E pairs, including those of inactive
            experts.
        l1_start: Float above 0. Initial value of the coefficient. 1e-8 (the
            default) is the paper's.
        l1_growth: Float above 1. Factor by which the coefficient changes in
            each step. 1.2 (the default) is the paper's, for tens of thousands
            of steps; 1.1 overshoots less.
        use_bias: Bool. Whether the logits have a bias, unlike the paper's.
            Without one, a linear map of inputs with mean zero makes half of
            all logits positive, whatever the loss. True by default.
        **kwargs: Arguments of `LearnedRouter`.

    Weights: `kernel`, `bias`, and `l1_coefficient` `(1,)`, not trained by
    gradients.

    Reference: Wang et al. 2024, "ReMoE: Fully Differentiable
    Mixture-of-Experts with ReLU Routing".

    Example:

    ```python
    router = keras_moe.ReLURouter(4, top_k=2)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    arguments = (
        *LearnedRouter.arguments,
        "top_k",
        "max_experts",
        "l1_start",
        "l1_growth",
    )
    causal = True
    load_balancing_weight = 0.0
    has_loss = True

    def __init__(
        self,
        num_experts: int,
        top_k: int = 2,
        max_experts: int | None = None,
        l1_start: float = 1e-8,
        l1_growth: float = 1.2,
        use_bias: bool = True,
        **kwargs: Any,
    ):
        super().__init__(num_experts, use_bias=use_bias, **kwargs)
        self.top_k = checks.check_top_k(top_k, num_experts)
        self.max_experts = router_checks.check_max_experts(
            max_experts, top_k, num_experts
        )
        self.l1_start = checks.check_above("l1_start", l1_start, 0, 1e9)
        self.l1_growth = checks.check_above("l1_growth", l1_growth, 1, 1e9)

    @property
    def pairs_per_token(self) -> int:
        """M, or E if `max_experts` is None."""
        return self.max_experts or self.num_experts

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(..., D)`."""
        super().build(input_shape)
        self.l1_coefficient = self.add_router_weight(
            "l1_coefficient",
            (1,),
            keras.initializers.Constant(_not_above(self.l1_start)),
            trainable=False,
        )

    def route(self, batch: TokenBatch) -> Assignment:
        """Use the positive logits; in training, update the coefficient."""
        logits = self.logits(batch)
        # A copy, since the weight changes before the gradient is computed.
        coefficient = kernels.first_value(lambda: self.l1_coefficient.value * 1)
        assignment = routing.relu_assignment(
            logits,
            self.pairs_per_token,
            self.top_k,
            coefficient,
            batch.conditions,
            over_replicas=batch.training,
        )
        if batch.training:
            self.write(
                self.l1_coefficient,
                routing.next_l1_coefficient(
                    coefficient,
                    logits,
                    self.top_k,
                    self.l1_growth,
                    batch.conditions.counted,
                    batch.conditions.available,
                ),
            )
        return assignment


def _not_above(value: float) -> float:
    """Return the largest float32 that is not above a number.

    A coefficient that never grew is then not above `l1_start`.
    """
    near = np.float32(value)
    if float(near) > value:
        near = np.nextafter(near, np.float32(0))
    return float(near)
