"""Compute GShard's one-hot einsum block, as in keras.io and flaxformer.

T tokens, D hidden_dim, F intermediate_dim, E experts, K top_k, C capacity.
The block follows Lepikhin et al. 2020, "GShard", algorithm 1 and section 3.2,
for any K and without the random second choice. Dispatch is a product with a
`(T, E, C)` mask.
"""

import keras
from keras import ops


class EinsumMoE(keras.layers.Layer):
    """Sends each token to its K best experts through a one-hot mask.

    Args:
        num_experts: int. E.
        intermediate_dim: int. F.
        top_k: int. K.
        capacity: int. C, the largest number of pairs per expert; further pairs
            are dropped, second choices before first ones.
    """

    def __init__(self, num_experts, intermediate_dim, top_k, capacity, **kw):
        super().__init__(**kw)
        self.num_experts, self.top_k = num_experts, top_k
        self.intermediate_dim, self.capacity = intermediate_dim, capacity

    def build(self, input_shape):
        D, E, F = input_shape[-1], self.num_experts, self.intermediate_dim
        self.router = self.add_weight((D, E), name="router")
        self.gate = self.add_weight((E, D, F), name="gate")
        self.up = self.add_weight((E, D, F), name="up")
        self.down = self.add_weight((E, F, D), name="down")

    def call(self, x, training=None):
        logits = ops.cast(ops.matmul(x, self.router), "float32")
        weights, chosen = ops.top_k(ops.softmax(logits), self.top_k)
        weights = weights / ops.sum(weights, axis=-1, keepdims=True)
        combine = ops.cast(self._combine(weights, chosen), x.dtype)
        dispatch = ops.cast(combine > 0, x.dtype)
        rows = ops.einsum("tec,td->ecd", dispatch, x)
        gate = ops.silu(ops.einsum("ecd,edf->ecf", rows, self.gate))
        hidden = gate * ops.einsum("ecd,edf->ecf", rows, self.up)
        rows = ops.einsum("ecf,efd->ecd", hidden, self.down)
        return ops.einsum("tec,ecd->td", combine, rows)

    def _combine(self, weights, chosen):
        """Return the weight of token t at place c of expert e: (T, E, C)."""
        combine, taken = 0.0, 0.0
        places = ops.arange(self.capacity, dtype="float32")
        for k in range(self.top_k):
            mask = ops.one_hot(chosen[:, k], self.num_experts, dtype="float32")
            place = ops.cumsum(mask, axis=0) - 1.0 + taken
            taken = taken + ops.sum(mask, axis=0, keepdims=True)
            place = ops.sum(place * mask, axis=-1, keepdims=True)
            # A place of C or more equals no column, so the pair is dropped.
            columns = ops.cast(ops.equal(place, places), "float32")
            pair = (weights[:, k, None] * mask)[:, :, None]
            combine = combine + pair * columns[:, None, :]
        return combine

    def compute_output_shape(self, input_shape):
        return input_shape
