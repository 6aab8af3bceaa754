"""Router by the cosine similarity of tokens and experts.

T tokens, D hidden_dim, E experts, R routing_dim.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_moe import checks
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.router import Router
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class CosineRouter(Router):
    """Scores experts by cosine similarity in a low-dimensional space.

    The logit of expert i is `cos(x P, e_i) / temperature`, with an embedding
    `e_i` per expert. The length of an embedding gives no expert an advantage,
    and the hidden states do not collapse onto the experts' few directions.

    Args:
        num_experts: Int, E.
        top_k: Int, K. Experts per token. 2 by default.
        routing_dim: Int, R. Width of the space. `None` (the default) is half
            of E + N, and at least 2.
        temperature: Float above 0. Initial value of the learned temperature,
            which is at least 0.01. 0.3 by default.
        **kwargs: Arguments of `Router`.

    Weights: `projection` `(D, R)`, `kernel` `(R, E + N)`, the embeddings, and
    `log_temperature` `(1,)`, in addition to those of `Router`.

    Reference: Chi et al. 2022, "On the Representation Collapse of Sparse
    Mixture of Experts" (X-MoE), eq. 5-7.

    Example:

    ```python
    router = keras_moe.CosineRouter(4, top_k=2)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    arguments = (*Router.arguments, "routing_dim", "temperature")

    def __init__(
        self,
        num_experts: int,
        top_k: int = 2,
        routing_dim: int | None = None,
        temperature: float = 0.3,
        **kwargs: Any,
    ):
        super().__init__(num_experts, top_k=top_k, **kwargs)
        self.routing_dim = checks.check_optional_int("routing_dim", routing_dim)
        self.temperature = checks.check_above(
            "temperature", temperature, 0, float("inf")
        )

    def build_scores(self) -> None:
        """Create the projection, the embeddings, and the temperature."""
        width = self.routing_dim or max(2, self.num_columns // 2)
        self.projection = self.add_kernel(
            "projection", (self.hidden_dim, width)
        )
        self.kernel = self.add_kernel("kernel", (width, self.num_columns))
        self.log_temperature = self.add_router_weight(
            "log_temperature",
            (1,),
            keras.initializers.Constant(math.log(self.temperature)),
        )

    def scores(self, tokens: Tensor, batch: TokenBatch) -> Tensor:
        """Return the cosines divided by the temperature, `(T, E + N)`."""
        tokens = ops.matmul(tokens, self.projection)
        cosines = ops.matmul(
            _unit(tokens, -1), _unit(ops.convert_to_tensor(self.kernel), 0)
        )
        temperature = ops.maximum(ops.exp(self.log_temperature), 0.01)
        return cosines / temperature


def _unit(x: Tensor, axis: int) -> Tensor:
    """Divide by the Euclidean length along an axis; zero stays zero."""
    square = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(square, 1e-12))
