"""Types that the whole package uses in annotations.

Axis letters in every file that holds tensors: **T** tokens, **D** hidden_dim,
**F** intermediate_dim, **E** experts, **K** top_k, **C** expert_capacity,
**P** routed pairs (T * K for token choice, E * C for expert choice).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

Tensor: TypeAlias = Any
"""A tensor of the running backend (or a symbolic `keras.KerasTensor`)."""

Shape: TypeAlias = Sequence[int | None]
"""A static shape. A dimension that is known only at run time is `None`."""

Activation: TypeAlias = Callable[[Tensor], Tensor]
"""An elementwise function of a tensor, such as `keras.activations.relu`."""


UNAVAILABLE = -1e30
"""The logit of an expert that is off. It is below every score but finite, so
that the difference of two such logits is not NaN."""


class Assignment(NamedTuple):
    """The routed pairs of a batch of tokens.

    Every pair is one token and one expert. An expert that is off has no pairs,
    the probability zero, and the logit `UNAVAILABLE`, so that a sum over
    experts is a sum over those that are on.

    token_index: int32 `(P,)`, the token of each pair.
    expert_index: int32 `(P,)`, the expert of each pair. It is E for a pair that
        is not computed, and above E for a pair of a null expert.
    combine_weights: float32 `(P,)`, the weight of each pair's output in the
        output of its token.
    router_probs: float32 `(T, E)`, non-negative. Each row sums to one.
    router_logits: float32 `(T, E + N)`, before any scoring. `UNAVAILABLE` in
        the columns of experts that are off.
    router_loss: float32 scalar, the auxiliary loss of the routing algorithm,
        multiplied by its weight. Zero if the algorithm has none.

    Example:

    ```python
    router = keras_moe.Router(4, top_k=2)
    assignment = router(keras.random.normal((3, 16)))
    # Token 0 comes first: its two experts, and the weights of their outputs.
    experts = assignment.expert_index[:2]
    weights = assignment.combine_weights[:2]
    ```
    """

    token_index: Tensor
    expert_index: Tensor
    combine_weights: Tensor
    router_probs: Tensor
    router_logits: Tensor
    router_loss: Tensor
