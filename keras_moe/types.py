"""Types that the whole package uses in annotations.

Axis letters in every file that holds tensors: **T** tokens, **D** hidden_dim,
**F** intermediate_dim, **E** experts, **K** top_k, **C** expert_capacity,
**P** routed pairs (T * K for token choice, E * C for expert choice).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Self, TypeAlias

Tensor: TypeAlias = Any
"""A tensor of the running backend (or a symbolic `keras.KerasTensor`)."""

Shape: TypeAlias = Sequence[int | None]
"""A static shape. A dimension that is known only at run time is `None`."""

Activation: TypeAlias = Callable[..., Tensor]
"""An elementwise function of a tensor, such as `keras.activations.relu`, or a
`GatedUnit`."""


class GatedUnit:
    """Base class of activations of gated experts that need gate and up.

    A gated expert with a plain activation computes `activation(gate) * up`
    between its matrices. With a `GatedUnit` it computes `unit(gate, up)`.
    `ClippedSwiGLU` is such a unit.

    A subclass implements `__call__`, and `get_config` if its constructor has
    arguments. The hidden units of different experts and tokens must not be
    mixed. Attributes must not change after the first call: compiled functions
    hold their values.

    Call arguments:
        gate, up: Float tensors of the same shape `(..., F)`.

    Returns:
        Tensor of this shape, which the down kernel multiplies.

    Example:

    ```python
    @keras.saving.register_keras_serializable(package="my_package")
    class SquaredUnit(keras_moe.GatedUnit):
        def __call__(self, gate, up):
            return keras.activations.silu(gate) * up**2

    experts = keras_moe.Expert(32, activation=SquaredUnit(), gated=True)
    outputs = experts(keras.random.normal((6, 16)))
    ```
    """

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return the hidden units; see the class."""
        raise NotImplementedError(
            f"`__call__(gate, up)` of {type(self).__name__} must be "
            "implemented. Received: a class without it. Return the hidden "
            "units, for instance keras.activations.silu(gate) * up."
        )

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this unit again."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the unit that `get_config` describes."""
        return cls(**config)


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
