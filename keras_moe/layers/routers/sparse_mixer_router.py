"""Router of Phi-3.5-MoE: two experts, drawn in training.

T tokens, D hidden_dim, E experts.
"""

from typing import Any

import keras

from keras_moe import checks, routing
from keras_moe.kernels import light_ops as ops
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.learned_router import LearnedRouter
from keras_moe.routing import Assignment
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class SparseMixerRouter(LearnedRouter):
    """Chooses two experts, each from those whose logits are near the best.

    In evaluation, the two best experts are chosen. The weight of each is its
    share of a softmax over the experts that are near it, so that the two
    weights do not sum to one. In training, each expert is drawn from those near
    the best, and the gradient of the draw is estimated by Heun's third-order
    method; see `keras_moe.routing.sparse_mixer_assignment`.

    Evaluation equals that of Hugging Face's Phi-MoE. Training differs in three
    ways: the random numbers are other ones; the factor of a shortened weight
    is 1/3, and not 0.3333; and `jitter` (Phi-MoE's `input_jitter_noise`, 0 by
    default) changes the inputs of the router only, while Phi-MoE also changes
    those of the experts, twice.

    Args:
        num_experts: Int, E, 2 or more.
        margin: Float, 0 or above. An expert competes with the best if its logit
            is within `2 * margin` of it, relative to the larger size of the
            two. 0.01 (the default) is Phi-3.5-MoE's, whose configuration calls
            it `router_jitter_noise`. A larger margin lets more experts compete.
        **kwargs: Arguments of `LearnedRouter`.

    Reference: Liu et al. 2024, "GRIN: GRadient-INformed MoE" (SparseMixer-v2);
    Abdin et al. 2024, "Phi-3 Technical Report" (Phi-3.5-MoE).

    Example:

    ```python
    router = keras_moe.SparseMixerRouter(4)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    causal = True
    top_k = 2
    arguments = (*LearnedRouter.arguments, "margin")

    def __init__(self, num_experts: int, margin: float = 0.01, **kwargs: Any):
        super().__init__(num_experts, **kwargs)
        checks.check_top_k(self.top_k, num_experts)
        self.margin = checks.check_weight("margin", margin)

    def route(self, batch: TokenBatch) -> Assignment:
        """Choose the two best experts; in training, draw two."""
        logits = self.logits(batch)
        noise = draw = None
        if batch.training:
            shape = ops.shape(logits)
            noise = ops.stack([self._gumbel(shape), self._gumbel(shape)])
            draw = self._uniform((shape[0], 2))
        return routing.sparse_mixer_assignment(
            logits, self.margin, batch.conditions, noise, draw
        )

    def _gumbel(self, shape: tuple[Any, ...]) -> Tensor:
        """Draw noise from the standard Gumbel distribution, finite."""
        drawn = ops.maximum(self._uniform(shape), 1e-20)
        return -ops.log(-ops.log(drawn))

    def _uniform(self, shape: tuple[Any, ...]) -> Tensor:
        return keras.random.uniform(
            shape, dtype="float32", seed=self.seed_generator
        )
