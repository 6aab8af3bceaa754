"""A router with more columns than there are experts.

T tokens, E columns of the router inside, N null experts, M merged experts, K
top_k, P routed pairs.
"""

import math
from collections.abc import Iterable
from typing import Any, Self

import keras
from keras import ops

from keras_moe import kernels
from keras_moe.layers.routers.base_router import BaseRouter
from keras_moe.types import UNAVAILABLE, Assignment, Shape, Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class MergedRouter(BaseRouter):
    """Route by a router of E experts, whose columns belong to merged experts.

    Each pair is sent to the expert that its column was merged into. A token
    that chose two columns of one merged expert gets its output with the sum of
    both weights. The probability of a merged expert is the sum of its columns'
    probabilities, and its logit the log-sum-exp of their logits; losses and
    metrics use these.

    Its weights are those of `router`, and `merged_into` `(E,)`, the merged
    expert of each column, which is not trained. It is zero until
    `merge_experts` sets it.

    Args:
        num_experts: Positive int. M.
        router: Router of E experts, M or more, that is no `MergedRouter`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        x: float `(..., D)`. Tokens.
        mask: bool `(...)` or None. False for padding. `None` (the default)
            means that there is no padding.
        training: bool or None, as in any Keras layer.
        router_inputs: Inputs that `router` needs besides the tokens, or None.
        replay: None. An `Assignment` is refused.
        x_mask: bool `(...)` or None. The mask that Keras has for `x`, used if
            `mask` is None.
        loss_mask: bool `(...)` or None. See `BaseRouter`.

    Returns:
        An `Assignment` to M experts. Several pairs of a token may have the same
        expert.

    Raises:
        ValueError: If `router` is no router, is a `MergedRouter`, or has fewer
            than `num_experts` experts; or, in a call, if `replay` is passed.

    Example:

    ```python
    router = keras_moe.Router(8, top_k=2)
    merged = keras_moe.compress.MergedRouter(4, router)
    assignment = merged(keras.random.normal((5, 16)))  # to 4 experts
    ```
    """

    arguments = ("num_experts", "seed", "router")

    def __init__(self, num_experts: int, router: BaseRouter, **kwargs: Any):
        super().__init__(num_experts, **kwargs)
        if not isinstance(router, BaseRouter) or isinstance(
            router, MergedRouter
        ):
            raise ValueError(
                "`router` must be a router that is not merged itself. "
                f"Received: router={router!r}. Merge the trained model once."
            )
        if router.num_experts < num_experts:
            raise ValueError(
                "`num_experts` must be at most the router's. Received: "
                f"num_experts={num_experts}, a router of {router.num_experts} "
                "experts. Lower it."
            )
        self.router = router
        for name in _OF_ROUTER:
            setattr(self, name, getattr(router, name))

    @property
    def pairs_per_token(self) -> int | None:
        """The number of pairs per token of the router inside."""
        return self.router.pairs_per_token

    @property
    def least_experts(self) -> int:
        """1, since all pairs of a token may have the same expert."""
        return 1

    def build(self, input_shape: Shape) -> None:
        """Create the weights for inputs `(..., D)`."""
        super().build(input_shape)
        if not self.router.built:
            self.router.build(input_shape)
        self.merged_into = self.add_router_weight(
            "merged_into", (self.router.num_experts,), "zeros", trainable=False
        )

    def call(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        training: bool | None = None,
        router_inputs: Tensor | None = None,
        replay: Assignment | None = None,
        x_mask: Tensor | None = None,
        loss_mask: Tensor | None = None,
    ) -> Assignment:
        """Route tokens `(..., D)`; see the class."""
        if replay is not None:
            raise ValueError(
                "`replay` must be None: an Assignment does not hold which of a "
                "merged expert's columns a token chose. Received: an "
                "Assignment. Compare the unmerged models."
            )
        options = {"router_inputs": router_inputs, "loss_mask": loss_mask}
        given = {n: value for n, value in options.items() if value is not None}
        mask = x_mask if mask is None else mask
        assignment = self.router(x, mask=mask, training=training, **given)
        return self._merged(assignment)

    def _merged(self, assignment: Assignment) -> Assignment:
        """Return the assignment to M experts of an assignment to E."""
        into = ops.cast(ops.convert_to_tensor(self.merged_into), "int32")
        columns, merged = self.router.num_experts, self.num_experts
        found = assignment.expert_index
        index = ops.take(into, ops.minimum(found, columns - 1))
        index = ops.where(found >= columns, found - columns + merged, index)
        experts = ops.arange(merged, dtype="int32")
        member = ops.equal(ops.expand_dims(into, -1), experts)
        member = ops.cast(member, "float32")
        return assignment._replace(
            expert_index=index,
            router_probs=ops.matmul(assignment.router_probs, member),
            router_logits=self._logits(assignment.router_logits, member),
        )

    def _logits(self, logits: Tensor, member: Tensor) -> Tensor:
        """Return the log-sum-exp over each expert's columns, `(T, M + N)`.

        It is at least the largest logit minus 80, so that it is finite.

        Args:
            logits: float32 `(T, E + N)`.
            member: float32 `(E, M)`. 1 if a column belongs to an expert, else
                0.
        """
        columns = self.router.num_experts
        own = logits[:, :columns]
        best = kernels.top_k_index(own, 1)  # a maximum fails on no tokens
        top = kernels.take_columns(own, best)
        sums = ops.matmul(ops.exp(own - top), member)
        merged = top + ops.log(ops.maximum(sums, math.exp(-80)))
        on = ops.cast(own[:1] > UNAVAILABLE / 2, "float32")
        none_on = ops.equal(ops.matmul(on, member), 0)
        merged = ops.where(none_on, UNAVAILABLE, merged)
        return ops.concatenate([merged, logits[:, columns:]], axis=-1)

    def disable_experts(self, expert_indices: Iterable[int]) -> None:
        """Disable merged experts with all of their columns.

        Args:
            expert_indices: ints in 0 ... M - 1.

        Raises:
            ValueError: If an index is out of its range, if the router is not
                built, or if fewer columns would be left than a token needs.
        """
        indices = [int(e) for e in expert_indices]
        self._check_built()
        into = self.merged_into.numpy()
        self.router.disable_experts(
            [c for c, e in enumerate(into) if int(e) in indices]
        )
        super().disable_experts(indices)

    def enable_experts(
        self, expert_indices: Iterable[int] | None = None
    ) -> None:
        """Enable merged experts again, or all of them with `None`."""
        super().enable_experts(expert_indices)
        if expert_indices is None:
            expert_indices = range(self.num_experts)
        indices = [int(e) for e in expert_indices]
        into = self.merged_into.numpy()
        self.router.enable_experts(
            [c for c, e in enumerate(into) if int(e) in indices]
        )

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Build the router that `get_config` describes."""
        router = keras.saving.deserialize_keras_object(config["router"])
        return cls(**{**config, "router": router})


_OF_ROUTER = (
    "top_k",
    "num_null_experts",
    "null_outputs",
    "load_balancing_weight",
    "balances_first_choice",
    "has_loss",
    "causal",
    "reads_tokens",
    "reads_context",
    "router_inputs_use",
    "router_inputs_kind",
    "router_inputs_dim",
)
