"""Router that reads the logits of the previous block.

T tokens, D hidden_dim, E experts, N null experts.
"""

from typing import Any

import keras
from keras import ops

from keras_moe import checks
from keras_moe.layers.routers.base_router import TokenBatch, without
from keras_moe.layers.routers.router import Router
from keras_moe.layers.tokens import flatten_logits
from keras_moe.routing.assignment import available_logits, unavailable
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class PathwayRouter(Router):
    """Adds a map of the previous block's logits to its own logits.

    `logits_j = W_j x_j + W_g logits_(j-1)` (gating residuals). The first block
    of a chain has a plain `Router`; each next block takes the `router_logits`
    of the block before it as `router_inputs`, and gradients flow back through
    them. The logits of experts that are off, in either block, are left out:

        x, a = first(x, return_assignment=True)
        x, a = second(x, router_inputs=a.router_logits, return_assignment=True)

    Args:
        num_experts: Int, E. The previous block has the same E and N.
        top_k: Int, K. Experts per token. 2 by default.
        pathway_initializer: Keras initializer of W_g, or its name. `"zeros"`
            (the default) starts as a plain router; the code of the paper
            starts with the random values of a linear layer.
        **kwargs: Arguments of `Router`.

    Weights: `pathway_kernel` `(E + N, E + N)`, W_g, in addition to those of
    `Router`.

    Call arguments:
        router_inputs: Float tensor of shape `(T, E + N)`, or of the shape of
            `x` with E + N in place of D. Under a mixed policy, a block casts
            them, like all its inputs, to the compute dtype.

    Reference: Jin et al. 2024, "MoE++: Accelerating Mixture-of-Experts Methods
    with Zero-Computation Experts", section 3.2.

    Example:

    ```python
    first = keras_moe.MoEBlock(4, intermediate_dim=32)
    second = keras_moe.MoEBlock(
        4, intermediate_dim=32, router=keras_moe.PathwayRouter(4, top_k=2)
    )
    x = keras.random.normal((2, 5, 16))
    x, assignment = first(x, return_assignment=True)
    outputs = second(x, router_inputs=assignment.router_logits)
    ```
    """

    fixed_arguments = (*Router.fixed_arguments, "router_inputs_dim")
    arguments = (
        *without(Router.arguments, *fixed_arguments),
        "pathway_initializer",
    )
    expert_axes = {**Router.expert_axes, "pathway_kernel": (0, 1)}
    router_inputs_use = "required"
    router_inputs_kind = "logits"

    def __init__(
        self,
        num_experts: int,
        top_k: int = 2,
        pathway_initializer: str | keras.initializers.Initializer = "zeros",
        **kwargs: Any,
    ):
        super().__init__(num_experts, top_k=top_k, **kwargs)
        self.pathway_initializer = checks.check_initializer(
            "pathway_initializer", pathway_initializer
        )

    def build_scores(self) -> None:
        """Create the linear maps of the tokens and of the previous logits."""
        super().build_scores()
        self.pathway_kernel = self.add_router_weight(
            "pathway_kernel",
            (self.num_columns, self.num_columns),
            self.pathway_initializer,
            regularizer=self.kernel_regularizer,
        )

    def scores(self, tokens: Tensor, batch: TokenBatch) -> Tensor:
        """Return the logits `(T, E + N)` of tokens and previous logits."""
        previous = flatten_logits(
            batch.router_inputs,
            batch.inputs,
            self.num_columns,
            batch.conditions.token_mask,
        )
        # Zero for experts that are off, here or in the previous block.
        previous = available_logits(previous, batch.conditions)
        absent = unavailable(previous)
        previous = ops.where(absent, ops.zeros_like(previous), previous)
        residual = ops.matmul(previous, self.pathway_kernel)
        return super().scores(tokens, batch) + residual
