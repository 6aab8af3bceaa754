"""Router of the Switch Transformer: one expert per token."""

from typing import Any

import keras

from keras_moe.layers.routers.base_router import without
from keras_moe.layers.routers.router import Router


@keras.saving.register_keras_serializable(package="keras_moe")
class SwitchRouter(Router):
    """Sends each token to its best expert.

    The weight is the probability (eq. 2), from which the router learns.
    `MoEBlock` adds the paper's loss (eq. 4-6) with the weight 0.01.

    Args:
        num_experts: Int, E.
        jitter: Float, 0 or above and below 1. In training, the inputs are
            multiplied by noise drawn uniformly from `1 - jitter ... 1 +
            jitter`. 0.01 by default.
        **kwargs: Arguments of `Router` except `top_k`, `scoring`, and
            `normalize_weights`.

    Reference: Fedus et al. 2021, "Switch Transformers", section 2.

    Example:

    ```python
    router = keras_moe.SwitchRouter(4)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    fixed_arguments = (
        *Router.fixed_arguments,
        "top_k",
        "scoring",
        "normalize_weights",
    )
    arguments = without(Router.arguments, *fixed_arguments)

    def __init__(self, num_experts: int, jitter: float = 0.01, **kwargs: Any):
        super().__init__(
            num_experts,
            top_k=1,
            normalize_weights=False,
            jitter=jitter,
            **kwargs,
        )
