"""Experts that cost nothing.

T tokens, D hidden_dim, E experts, N null experts, K top_k, V = N - 2 vectors.
"""

from keras import ops

from keras_moe import routing
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.quantization import KeptInFloats
from keras_moe.routing import Assignment
from keras_moe.types import Shape, Tensor


class NullExperts(KeptInFloats, MoELayer):
    """What a token gets from null experts (MoE++: Jin et al. 2024, "MoE++:
    Accelerating Mixture-of-Experts Methods with Zero-Computation Experts",
    eq. 4-6).

    Null expert 0 gives zero, 1 the token, and j above `a x + b v_j`, with
    `(a, b) = softmax(W_j x)`: constants in the paper's words. The paper's loss
    weighs null experts' load by a factor tau; here the load-balancing loss is
    over the real experts alone, and how many tokens null experts take is
    learned.

    Args:
        num_null_experts: N, 1 or more.
        **kwargs: of `keras.layers.Layer`.

    Weights, where N > 2: `vectors` `(V, D)`; `mixer_kernel` `(D, 2 V)`.

    Call arguments:
        tokens: `(T, D)`.
        assignment: with K pairs a token in the order of the tokens.
        pairs_per_token: K.

    Returns:
        `(T, D)`, the null experts' weighted sum.
    """

    def __init__(self, num_null_experts: int, **kwargs):
        super().__init__(**kwargs)
        self.num_null_experts = num_null_experts

    def build(self, input_shape: Shape) -> None:
        """Creates the weights for tokens `(T, D)`."""
        width, vectors = input_shape[-1], self.num_null_experts - 2
        if vectors > 0:
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
        """Sums identity and constants by their weights."""
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
