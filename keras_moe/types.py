"""The names that type annotations share.

Axis letters in every file that holds tensors: **T** tokens, **D** hidden_dim,
**F** intermediate_dim, **E** experts, **K** top_k, **C** expert_capacity,
**P** routed pairs (T * K for token choice, E * C for expert choice).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

Tensor: TypeAlias = Any
"""A tensor of the running backend (or a symbolic `keras.KerasTensor`)."""

Shape: TypeAlias = Sequence[int | None]
"""A static shape; `None` stands for a dimension known only at run time."""

Activation: TypeAlias = Callable[[Tensor], Tensor]
"""An elementwise function of a tensor, such as `keras.activations.relu`."""


UNAVAILABLE = -1e30
"""The logit of an expert that is off: below every score, and the difference of
two is no NaN."""


class Assignment(NamedTuple):
    """The routed pairs of a batch of tokens.

    An expert that is off has no pair, the probability zero, and the logit
    `UNAVAILABLE`, so that a sum over experts is one over those that are on.

    token_index: int32 `(P,)`, the token of each pair.
    expert_index: int32 `(P,)`, its expert; E where it is not computed, above
        E where it is a null expert's.
    combine_weights: float32 `(P,)`, its share in the token's output.
    router_probs: float32 `(T, E)`, non-negative, each row sums to one.
    router_logits: float32 `(T, E + N)`, before any scoring; `UNAVAILABLE`
        in the columns of experts that are off.
    router_loss: float32 scalar, the algorithm's own auxiliary loss with its
        weight; zero where it has none.

    Example:

    ```python
    router = keras_moe.Router(4, top_k=2)
    assignment = router(keras.random.normal((3, 16)))
    # Token 0 stands first: its two experts, and the weights of their outputs.
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
