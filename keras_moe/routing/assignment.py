"""The result of every routing algorithm: a flat list of routed pairs.

T tokens, E experts, N null experts, K top_k, P routed pairs.

A pair whose `expert_index` is E is not computed: it belongs to a padding token,
is over capacity, or chose an expert that is off. It sorts behind all experts,
belongs to no group, costs nothing, and contributes zero. The index E + 1 + j
is null expert j, which costs nothing either. Its output is not computed by the
experts.
"""

from typing import NamedTuple

from keras_moe.checks import routing_checks
from keras_moe.kernels import light_ops as ops
from keras_moe.kernels import (
    row_of_each,
    take_columns,
    take_rows,
    top_k_index,
)
from keras_moe.types import UNAVAILABLE, Assignment, Tensor


class Conditions(NamedTuple):
    """The conditions that a batch sets for every routing algorithm.

    token_mask: bool `(T,)`, False for padding, which is not routed. None if no
        token is padding.
    available: bool `(E,)`, False for experts that are off. None if all are on.
    replay: an `Assignment` whose choices are repeated. Its weights and
        probabilities are computed again, so that gradients flow. None if
        tokens choose.
    loss_mask: bool `(T,)`, False for a token that is routed, but excluded from
        losses and load. None if only padding is excluded.

    Example:

    ```python
    # The last token is padding.
    conditions = keras_moe.routing.Conditions(
        token_mask=np.array([True, True, False])
    )
    ```
    """

    token_mask: Tensor | None = None
    available: Tensor | None = None
    replay: Assignment | None = None
    loss_mask: Tensor | None = None

    @property
    def counted(self) -> Tensor | None:
        """Bool `(T,)`, False for tokens outside losses and load, or None."""
        return self.token_mask if self.loss_mask is None else self.loss_mask


UNCONDITIONAL = Conditions()


class Choice(NamedTuple):
    """The experts that each token chose.

    columns: int `(T, K)`, in 0 ... E + N - 1.
    computed: bool `(T, K)`, False for a choice that is not computed. None if
        all are.
    weighed: bool `(T, K)`, False for a choice that is excluded when weights
        are normalized. None if exactly those that are not computed are.
    """

    columns: Tensor
    computed: Tensor | None = None
    weighed: Tensor | None = None

    def values(self, table: Tensor, missing: float = 0.0) -> Tensor:
        """Gather `(T, E + N)` at the choices; `missing` if not weighed."""
        found = take_columns(table, self.columns)
        weighed = self.computed if self.weighed is None else self.weighed
        if weighed is None:
            return found
        return ops.where(weighed, found, missing)

    def only(self, condition: Tensor) -> "Choice":
        """Exclude choices for which a bool `(T, K)` or `(T, 1)` is False."""
        computed, weighed = (
            condition if x is None else ops.logical_and(x, condition)
            for x in (self.computed, self.weighed)
        )
        if self.weighed is None:
            return self._replace(computed=computed)
        return self._replace(computed=computed, weighed=weighed)


def choose(scores: Tensor, top_k: int, conditions: Conditions) -> Choice:
    """Return the K best experts of each token, or the replayed ones.

    Args:
        scores: float32 `(T, E + N)`. The scores that rank the experts, far
            below all others for experts that are not available.
        top_k: int. K, at most the number of available experts.
        conditions: `Conditions` of the batch.
    """
    best = top_k_index(scores, top_k)
    if conditions.replay is None:
        return Choice(best)
    num_columns = routing_checks.num_columns(scores)
    return replayed(best, conditions.replay, conditions, num_columns)


def replayed(
    best: Tensor, replay: Assignment, conditions: Conditions, num_columns: int
) -> Choice:
    """Return the replayed choices.

    The expert of a pair that was recorded as not computed (it was over
    capacity, or below a threshold) is unknown. When weights are normalized,
    the token's present best expert that was not recorded takes its place. If
    the router has the weights of the recorded run, this is the same expert.

    Args:
        best: int `(T, K)`. The choices without a replay.
        replay: The recorded `Assignment`.
        conditions: `Conditions` of the batch.
        num_columns: int. E + N.
    """
    num_experts = routing_checks.num_columns(replay.router_probs)
    recorded = ops.reshape(replay.expert_index, (-1, best.shape[-1]))
    columns = ops.where(recorded > num_experts, recorded - 1, recorded)
    columns = ops.minimum(columns, num_columns - 1)
    computed = ops.not_equal(recorded, num_experts)
    again = ops.equal(ops.expand_dims(best, -1), ops.expand_dims(columns, 1))
    again = ops.logical_and(again, ops.expand_dims(computed, 1))
    left_out = ops.logical_not(ops.any(again, axis=-1))
    choice = Choice(
        ops.where(computed, columns, ops.cast(best, columns.dtype)),
        computed,
        ops.logical_or(computed, left_out),
    )
    return only_available(choice, conditions, num_columns)


def only_available(
    choice: Choice, conditions: Conditions, num_columns: int
) -> Choice:
    """Exclude the choices of experts that are off."""
    available = available_columns(conditions.available, num_columns)
    if available is None:
        return choice
    is_on = take_rows(available, ops.reshape(choice.columns, (-1,)))
    return choice.only(ops.reshape(is_on, ops.shape(choice.columns)))


def token_choice(
    router_logits: Tensor,
    router_probs: Tensor,
    choice: Choice,
    weights: Tensor,
    conditions: Conditions,
    num_null_experts: int = 0,
    router_loss: Tensor | None = None,
) -> Assignment:
    """Return the `Assignment` of the pairs that tokens chose.

    The pairs of token t are at `t * K ... t * K + K-1`.

    Args:
        router_logits: float32 `(T, E + N)`, the result of `available_logits`.
        router_probs: float32 `(T, E + N)`. The columns of null experts are
            removed, and the others are normalized to sum to one.
        choice: The chosen columns of the logits.
        weights: float32 `(T, K)`. The weights of the choices.
        conditions: `Conditions` of the batch.
        num_null_experts: int. N, the number of null experts, whose columns are
            the last. Defaults to 0.
        router_loss: Scalar. `None` (the default) for zero.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    choice = keras_moe.routing.assignment.Choice(
        keras_moe.kernels.top_k_index(logits, 2)
    )
    assignment = keras_moe.routing.token_choice(
        logits,
        ops.softmax(logits),
        choice,
        weights=ops.full((6, 2), 0.5),
        conditions=keras_moe.routing.Conditions(),
    )
    ```
    """
    num_experts = routing_checks.real_experts(
        routing_checks.num_columns(router_logits), num_null_experts
    )
    if conditions.token_mask is not None:
        choice = choice.only(ops.expand_dims(conditions.token_mask, -1))
    index, computed = choice.columns, choice.computed
    if num_null_experts:
        index = ops.where(index >= num_experts, index + 1, index)
        router_probs = as_probabilities(
            router_probs[:, :num_experts], conditions
        )
    if computed is not None:
        index = ops.where(computed, index, num_experts)
        weights = ops.where(computed, weights, ops.zeros_like(weights))
    return Assignment(
        token_index=row_of_each(weights),
        expert_index=ops.cast(ops.reshape(index, (-1,)), "int32"),
        combine_weights=ops.reshape(weights, (-1,)),
        router_probs=router_probs,
        router_logits=router_logits,
        router_loss=no_loss() if router_loss is None else router_loss,
    )


def available_logits(router_logits: Tensor, conditions: Conditions) -> Tensor:
    """Return the logits, `UNAVAILABLE` in columns of experts that are off."""
    available = available_columns(
        conditions.available, routing_checks.num_columns(router_logits)
    )
    if available is None:
        return router_logits
    return ops.where(available, router_logits, UNAVAILABLE)


def available_columns(
    available: Tensor | None, num_columns: int
) -> Tensor | None:
    """Return `(E,)` as `(E + N,)`: null experts are always available."""
    if available is None:
        return None
    available = ops.convert_to_tensor(available)
    num_null = num_columns - routing_checks.num_columns(available)
    if not num_null:
        return available
    null_experts = ops.ones(num_null, dtype="bool")
    return ops.concatenate([available, null_experts])


def unavailable(scores: Tensor) -> Tensor:
    """Return which scores are of experts that are off; False for NaN."""
    return scores <= UNAVAILABLE / 2


def normalized(values: Tensor) -> Tensor:
    """Divide non-negative `(T, .)` by the sums of rows; zero rows stay zero."""
    total = ops.sum(values, axis=-1, keepdims=True)
    return values / ops.maximum(total, 1e-20)


def as_probabilities(
    scores: Tensor, conditions: Conditions = UNCONDITIONAL
) -> Tensor:
    """Normalize rows of non-negative scores `(T, .)` to sum to one.

    A zero row becomes uniform over the experts that are on.
    """
    available = available_columns(
        conditions.available, routing_checks.num_columns(scores)
    )
    if available is None:
        return normalized(scores + 1e-20)
    return normalized(scores + 1e-20 * ops.cast(available, "float32"))


def softmax(logits: Tensor) -> Tensor:
    """Return `ops.softmax`, without its warning if there is one expert."""
    if logits.shape[-1] == 1:
        return ops.exp(ops.log_softmax(logits, axis=-1))
    return ops.softmax(logits, axis=-1)


def no_loss() -> Tensor:
    """Return the loss of an algorithm without one, a float32 zero."""
    return ops.zeros((), dtype="float32")
