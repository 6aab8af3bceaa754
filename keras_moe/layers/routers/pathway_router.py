"""A router that knows the way a token has come.

T tokens, D hidden_dim, E experts, N null experts.
"""

import keras
from keras import ops

from keras_moe import checks
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.router import Router
from keras_moe.layers.tokens import flatten_logits
from keras_moe.routing.assignment import available_logits, unavailable
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class PathwayRouter(Router):
    """Adds the previous block's logits to its own: gating residuals (MoE++:
    Jin et al. 2024, section 3.2).

    `logits_j = W_j x_j + W_g logits_(j-1)`. The first block of a chain has a
    plain `Router`; the next ones take its `router_logits` as
    `router_inputs`, and gradients flow back through them. The logits of
    experts that are off, there or here, are left out:

        x, a = first(x, return_assignment=True)
        x, a = second(x, router_inputs=a.router_logits, return_assignment=True)

    Args:
        num_experts: E, that of the previous block too, as N is.
        pathway_initializer: of the matrix W_g. Zeros start from a plain
            router; the paper's code has a linear layer's random start.
        **kwargs: of `Router`.

    Weights: `pathway_kernel` `(E + N, E + N)`, W_g, beside those of `Router`.

    Call arguments:
        router_inputs: float `(T, E + N)`, or of the shape of `x` with E + N
            in place of D. Under a mixed policy a block casts them, as all
            its inputs, to the compute dtype.

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

    arguments = (*Router.arguments, "pathway_initializer")
    expert_axes = {**Router.expert_axes, "pathway_kernel": (0, 1)}
    router_inputs_use = "required"
    router_inputs_kind = "logits"

    def __init__(
        self,
        num_experts: int,
        top_k: int = 2,
        pathway_initializer="zeros",
        **kwargs,
    ):
        super().__init__(num_experts, top_k=top_k, **kwargs)
        self.pathway_initializer = checks.check_initializer(
            "pathway_initializer", pathway_initializer
        )

    def build_scores(self) -> None:
        """Creates the linear map and the residual's."""
        super().build_scores()
        self.pathway_kernel = self.add_router_weight(
            "pathway_kernel",
            (self.num_columns, self.num_columns),
            self.pathway_initializer,
            regularizer=self.kernel_regularizer,
        )

    def scores(self, tokens: Tensor, batch: TokenBatch) -> Tensor:
        """Returns the logits `(T, E + N)` of tokens and of their way."""
        previous = flatten_logits(
            batch.router_inputs,
            batch.inputs,
            self.num_columns,
            batch.conditions.token_mask,
        )
        # An expert that is off has no way, neither here nor in that block.
        previous = available_logits(previous, batch.conditions)
        absent = unavailable(previous)
        previous = ops.where(absent, ops.zeros_like(previous), previous)
        residual = ops.matmul(previous, self.pathway_kernel)
        return super().scores(tokens, batch) + residual
