"""Router of the sparsely-gated mixture-of-experts layer.

T tokens, D hidden_dim, E experts, K top_k.
"""

from typing import Any

import keras
from keras import ops

from keras_moe import checks, losses, routing
from keras_moe.layers.routers.base_router import TokenBatch, without
from keras_moe.layers.routers.router import Router
from keras_moe.routing import Assignment
from keras_moe.types import Tensor

LEAST_NOISE = 0.01  # without it, the gradient of the losses is unbounded


@keras.saving.register_keras_serializable(package="keras_moe")
class NoisyTopKRouter(Router):
    """Chooses the K largest of noisy logits, with learned noise.

    In training, the logits are `H(x) = x W_g + N(0, 1) * (softplus(x W_noise)
    + 0.01)` (eq. 4; the 0.01 is ours and keeps some noise), and the weights
    are a softmax over the K largest (eq. 3, 5). The losses of importance (eq.
    6-7) and load (eq. 8-11) replace the load-balancing loss of a block. Both
    cover the batches of all replicas together, and the experts that are on;
    null experts are not counted, but experts compete with them.

    Args:
        num_experts: Int, E.
        top_k: Int, K. Experts per token. 2 by default.
        importance_weight, load_weight: Float, 0 or above. Weights of the two
            losses. 0.1 (the default) is the paper's.
        **kwargs: Arguments of `Router` except `scoring`, `normalize_weights`,
            and `noise_std`.

    Weights: those of `Router`, and `noise_kernel` `(D, E + N)`, zeros at
    first.

    Reference: Shazeer et al. 2017, "Outrageously Large Neural Networks",
    section 2.1, section 4, and appendix A.

    Example:

    ```python
    router = keras_moe.NoisyTopKRouter(4, top_k=2)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    fixed_arguments = (
        *Router.fixed_arguments,
        "scoring",
        "normalize_weights",
        "noise_std",
    )
    arguments = (
        *without(Router.arguments, *fixed_arguments),
        "importance_weight",
        "load_weight",
    )
    expert_axes = {**Router.expert_axes, "noise_kernel": (1,)}
    load_balancing_weight = 0.0
    has_loss = True

    def __init__(
        self,
        num_experts: int,
        top_k: int = 2,
        importance_weight: float = 0.1,
        load_weight: float = 0.1,
        **kwargs: Any,
    ):
        super().__init__(
            num_experts, top_k=top_k, scoring="topk_softmax", **kwargs
        )
        self.importance_weight = checks.check_weight(
            "importance_weight", importance_weight
        )
        self.load_weight = checks.check_weight("load_weight", load_weight)

    def build_scores(self) -> None:
        """Create the kernels of the logits and of the noise."""
        super().build_scores()
        self.noise_kernel = self.add_router_weight(
            "noise_kernel", (self.hidden_dim, self.num_columns), "zeros"
        )

    def choose(self, logits: Tensor, batch: TokenBatch) -> Assignment:
        """Choose experts; in training, with the noise and the losses."""
        if not batch.training:
            return super().choose(logits, batch)
        noise_std = ops.softplus(ops.matmul(batch.tokens, self.noise_kernel))
        noise_std = noise_std + LEAST_NOISE
        noisy = logits + self.normal_like(logits) * noise_std
        assignment = super().choose(noisy, batch)
        counted, available = (
            batch.conditions.counted,
            batch.conditions.available,
        )
        experts = ops.arange(self.num_experts, dtype="int32")
        gates = routing.dense_weights(assignment, self.top_k, experts)
        importance = losses.importance_loss(
            gates, counted, available, over_replicas=True
        )
        load = losses.load_loss(
            logits,
            noisy,
            noise_std,
            self.top_k,
            counted,
            available,
            self.num_null_experts,
            over_replicas=True,
        )
        return assignment._replace(
            router_loss=self.importance_weight * importance
            + self.load_weight * load
        )
