"""Router by attention to the context of a token.

B sequences, S sequence length, T = B * S tokens, D hidden_dim, E experts, R
routing_dim.
"""

import math
from typing import Any

import keras
from keras import ops

from keras_moe import checks
from keras_moe.layers.routers.base_router import TokenBatch
from keras_moe.layers.routers.router import Router
from keras_moe.routing.assignment import softmax
from keras_moe.types import Tensor

# Bound of queries, keys, and values: their products stay above -1e30, the mask.
LARGEST = 1e12


@keras.saving.register_keras_serializable(package="keras_moe")
class AttentionRouter(Router):
    """Scores experts by attention, with the context of a token in the query.

    `context = softmax(q k^T / sqrt(R)) v` over the tokens of the sequence, and
    the logits are `(q + context) K_experts / sqrt(R)`. Attention over the keys
    of experts follows the attention router of Yuan 2.0-M32 (Wu et al. 2024),
    which has no context. The sequence is the axis before the last; inputs of
    rank 2 are tokens without context. Time and memory of the attention grow
    with the square of S.

    Args:
        num_experts: Int, E.
        top_k: Int, K. Experts per token. 2 by default.
        routing_dim: Int, R. Width of queries, keys, and values. 32 by default.
        causal: Bool. Whether a token reads only itself and earlier tokens,
            which a causal model requires; the model then generates without a
            cache. False by default.
        **kwargs: Arguments of `Router`.

    Weights: `query_kernel`, `key_kernel`, `value_kernel` `(D, R)`, `kernel`
    `(R, E + N)`, the keys of the experts, in addition to those of `Router`.

    Reference: Vaswani et al. 2017, "Attention Is All You Need", eq. 1, with
    one head.

    Example:

    ```python
    router = keras_moe.AttentionRouter(4, top_k=2)
    block = keras_moe.MoEBlock(4, intermediate_dim=32, router=router)
    outputs = block(keras.random.normal((2, 5, 16)))
    ```
    """

    arguments = (*Router.arguments, "routing_dim", "causal")
    reads_context = True

    def __init__(
        self,
        num_experts: int,
        top_k: int = 2,
        routing_dim: int = 32,
        causal: bool = False,
        **kwargs: Any,
    ):
        super().__init__(num_experts, top_k=top_k, **kwargs)
        self.routing_dim = checks.check_positive_int("routing_dim", routing_dim)
        self.causal = checks.check_bool("causal", causal)

    def build_scores(self) -> None:
        """Create the projections and the keys of the experts."""
        shape = (self.hidden_dim, self.routing_dim)
        self.query_kernel = self.add_kernel("query_kernel", shape)
        self.key_kernel = self.add_kernel("key_kernel", shape)
        self.value_kernel = self.add_kernel("value_kernel", shape)
        self.kernel = self.add_kernel(
            "kernel", (self.routing_dim, self.num_columns)
        )

    def scores(self, tokens: Tensor, batch: TokenBatch) -> Tensor:
        """Return the logits `(T, E + N)` of tokens and their context."""
        query, key, value = (
            ops.clip(ops.matmul(tokens, kernel), -LARGEST, LARGEST)
            for kernel in (
                self.query_kernel,
                self.key_kernel,
                self.value_kernel,
            )
        )
        shape = ops.shape(batch.inputs)
        if len(shape) == 2:
            context = value
        else:
            context = self._context(query, key, value, shape, batch)
        return ops.matmul(query + context, self.kernel) * self._scale

    @property
    def _scale(self) -> float:
        return 1 / math.sqrt(self.routing_dim)

    def _context(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        shape: tuple[Any, ...],
        batch: TokenBatch,
    ) -> Tensor:
        """Return the context of each token in its sequence, `(T, R)`."""
        number = math.prod(shape[:-2])  # of sequences; -1 fails for none
        sequences = (number, shape[-2], self.routing_dim)
        query, key, value = (
            ops.reshape(x, sequences) for x in (query, key, value)
        )
        if self.causal:  # a weight of zero does not hide a NaN
            is_nan = ops.any(ops.isnan(key + value), axis=-1, keepdims=True)
            key, value = (ops.where(is_nan, 0.0, x) for x in (key, value))
        attention = ops.matmul(query, ops.transpose(key, (0, 2, 1)))
        if self.causal:  # the tokens that may read it become NaN
            is_nan = ops.transpose(is_nan, (0, 2, 1))
            attention = ops.where(is_nan, float("nan"), attention)
        attention = self._masked(attention * self._scale, batch, sequences)
        context = ops.matmul(softmax(attention), value)
        return ops.reshape(context, (-1, self.routing_dim))

    def _masked(
        self, attention: Tensor, batch: TokenBatch, sequences: tuple[Any, ...]
    ) -> Tensor:
        """Return attention scores `(B, S, S)`, -1e30 for masked tokens."""
        number, length, _ = sequences
        token_mask = batch.conditions.token_mask
        if token_mask is not None:
            readable = ops.reshape(token_mask, (number, 1, length))
            attention = ops.where(readable, attention, -1e30)
        if self.causal:
            place = ops.arange(length, dtype="int32")
            earlier = ops.expand_dims(place, -1) >= place
            attention = ops.where(earlier, attention, -1e30)
        return attention
