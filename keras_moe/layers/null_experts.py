"""Null experts, which cost nothing.

T tokens, D hidden_dim, E experts, N null experts, K top_k, V = N - 2 vectors.
"""

from typing import Any

from keras import ops

from keras_moe import routing
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.quantization import KeptInFloats
from keras_moe.routing import Assignment
from keras_moe.types import Shape, Tensor

NULL_OUTPUTS = ("mixed", "identity")


class NullExperts(KeptInFloats, MoELayer):
    """Computes the weighted sum of the null experts of each token.

    With the outputs `"identity"`, each null expert returns the token. With
    `"mixed"`, null expert 0 returns zero, null expert 1 the token, and each
    further one `a x + b v_j`, with `(a, b) = softmax(W_j x)` (a "constant
    expert" in the paper). The loss of the paper weights the load of null
    experts by a factor tau; here the load-balancing loss covers only the real
    experts, and the load of null experts is learned.

    Args:
        num_null_experts: Int, N, 1 or more.
        null_outputs: `"mixed"` (the default) or `"identity"`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Weights, with `"mixed"` and N above 2: `vectors` `(V, D)`; `mixer_kernel`
    `(D, 2 V)`.

    Call arguments:
        tokens: Float tensor of shape `(T, D)`.
        assignment: `Assignment` with K pairs per token, in the order of the
            tokens.
        pairs_per_token: Int, K.

    Returns:
        Tensor of shape `(T, D)`, the weighted sum of the null experts.

    Reference: Jin et al. 2024, "MoE++: Accelerating Mixture-of-Experts Methods
    with Zero-Computation Experts", eq. 4-6 (`"mixed"`); LongCat Team 2025,
    "LongCat-Flash Technical Report", section 2.1 (`"identity"`).
    """

    def __init__(
        self,
        num_null_experts: int,
        null_outputs: str = "mixed",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_null_experts = num_null_experts
        self.null_outputs = null_outputs

    def build(self, input_shape: Shape) -> None:
        """Create the weights for tokens `(T, D)`."""
        width, vectors = input_shape[-1], self.num_null_experts - 2
        if self.null_outputs == "mixed" and vectors > 0:
            self.vectors = self.add_weight(
                name="vectors",
                shape=(vectors, width),
                initializer="glorot_uniform",
            )
            self.mixer_kernel = self.add_weight(
                name="mixer_kernel",
                shape=(width, 2 * vectors),
                initializer="glorot_uniform",
            )

    def call(
        self, tokens: Tensor, assignment: Assignment, pairs_per_token: int
    ) -> Tensor:
        """Return the weighted sum of the null experts; see the class."""
        if self.null_outputs == "identity":
            share = routing.null_weight(assignment, pairs_per_token)
            return ops.cast(share, tokens.dtype) * tokens
        if self.num_null_experts == 1:
            return ops.zeros_like(tokens)
        null_experts = ops.arange(self.num_null_experts, dtype="int32")
        first = assignment.router_probs.shape[-1] + 1
        shares = routing.dense_weights(
            assignment, pairs_per_token, first + null_experts
        )
        shares = ops.cast(shares, tokens.dtype)
        outputs = shares[:, 1:2] * tokens
        if self.num_null_experts == 2:
            return outputs
        mix = ops.matmul(tokens, self.mixer_kernel)
        mix = ops.softmax(ops.reshape(mix, (-1, self.num_null_experts - 2, 2)))
        of_token = ops.sum(shares[:, 2:] * mix[..., 0], axis=1, keepdims=True)
        of_vectors = ops.matmul(shares[:, 2:] * mix[..., 1], self.vectors)
        return outputs + of_token * tokens + of_vectors
