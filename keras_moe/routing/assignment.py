"""What every routing algorithm ends in: a flat list of routed pairs.

T tokens, E experts, N null experts, K top_k, P routed pairs.

A pair whose `expert_index` is E is not computed (a padding token, one over
capacity, a disabled expert): it sorts behind every expert, belongs to no
group, costs nothing and contributes zero. E + 1 + j is null expert j, which
costs nothing either: what it gives is no matter of the experts.
"""

from typing import NamedTuple

from keras_moe.checks import check_assignment, routing_checks
from keras_moe.kernels import light_ops as ops
from keras_moe.kernels import (
    row_of_each,
    take_columns,
    take_rows,
    top_k_index,
)
from keras_moe.types import UNAVAILABLE, Assignment, Tensor


class Conditions(NamedTuple):
    """What a batch lays down for any routing algorithm.

    token_mask: bool `(T,)`, False for padding, which goes nowhere; or None.
    available: bool `(E,)`, False for experts that are switched off; or None.
    replay: an `Assignment` whose choices are taken again, or None. Weights
        and probabilities are computed anew, so that gradients flow.
    """

    token_mask: Tensor | None = None
    available: Tensor | None = None
    replay: Assignment | None = None


UNCONDITIONAL = Conditions()


class Choice(NamedTuple):
    """The experts a token chose.

    columns: int `(T, K)`, 0 ... E + N - 1.
    computed: bool `(T, K)`, False for a choice that is not carried out; None
        where all are.
    weighed: bool `(T, K)`, False for a choice that has no share in what is
        normalized; `None` where those that are computed have one.
    """

    columns: Tensor
    computed: Tensor | None = None
    weighed: Tensor | None = None

    def values(self, table: Tensor, missing: float = 0.0) -> Tensor:
        """Gather `(T, E + N)` at the choices; `missing` where not weighed."""
        found = take_columns(table, self.columns)
        weighed = self.computed if self.weighed is None else self.weighed
        if weighed is None:
            return found
        return ops.where(weighed, found, missing)

    def only(self, condition: Tensor) -> "Choice":
        """Leaves the choices where a bool `(T, K)` or `(T, 1)` is False out."""
        computed, weighed = (
            condition if x is None else ops.logical_and(x, condition)
            for x in (self.computed, self.weighed)
        )
        if self.weighed is None:
            return self._replace(computed=computed)
        return self._replace(computed=computed, weighed=weighed)


def choose(scores: Tensor, top_k: int, conditions: Conditions) -> Choice:
    """Returns the K best experts of each token, or the replayed ones.

    Args:
        scores: float32 `(T, E + N)`, what ranks the experts; far below all
            others where an expert is not available.
        top_k: K; as many experts are always available.
        conditions: of the batch.
    """
    best = top_k_index(scores, top_k)
    if conditions.replay is None:
        return Choice(best)
    return replayed(best, conditions, routing_checks.num_columns(scores))


def replayed(best: Tensor, conditions: Conditions, num_columns: int) -> Choice:
    """Return the replayed choices.

    A pair that was recorded as not computed (it was over capacity, or below a
    threshold) does not name its expert. The token's best expert of today
    takes its share of what is normalized: with the weights of the recorded
    run, this is the expert that was left out.

    Args:
        best: int `(T, K)`, what a run that is no replay would choose.
        conditions: of the batch, with a replay.
        num_columns: E + N.
    """
    num_experts = routing_checks.num_columns(conditions.replay.router_probs)  # type: ignore
    recorded = ops.reshape(
        conditions.replay.expert_index,  # type: ignore
        (-1, best.shape[-1]),
    )
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
    """Leaves the choices of experts that are off out."""
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
    """Lists the pairs that tokens chose: those of token t at `t * K ...`.

    Args:
        router_logits: float32 `(T, E + N)`, as `available_logits` returns
            them.
        router_probs: float32 `(T, E + N)`; null experts' columns are left out
            and the others made to sum to one again.
        choice: columns of the logits.
        weights: float32 `(T, K)`, of the choices.
        conditions: of the batch.
        num_null_experts: N; they are the last columns.
        router_loss: scalar, or None for zero.
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
    """Returns the logits, `UNAVAILABLE` in the columns of experts that are
    off."""
    available = available_columns(
        conditions.available, routing_checks.num_columns(router_logits)
    )
    if available is None:
        return router_logits
    return ops.where(available, router_logits, UNAVAILABLE)


def available_columns(
    available: Tensor | None, num_columns: int
) -> Tensor | None:
    """Returns `(E,)` as `(E + N,)`: null experts are always available."""
    if available is None:
        return None
    available = ops.convert_to_tensor(available)
    num_null = num_columns - routing_checks.num_columns(available)
    if not num_null:
        return available
    null_experts = ops.ones(num_null, dtype="bool")
    return ops.concatenate([available, null_experts])


def unavailable(scores: Tensor) -> Tensor:
    """Returns where scores are those of experts that are off, as bool; a NaN
    is not."""
    return scores <= UNAVAILABLE / 2


def normalized(values: Tensor) -> Tensor:
    """Divides non-negative `(T, .)` by its rows' sums; zero rows stay so."""
    total = ops.sum(values, axis=-1, keepdims=True)
    return values / ops.maximum(total, 1e-20)


def as_probabilities(
    scores: Tensor, conditions: Conditions = UNCONDITIONAL
) -> Tensor:
    """Makes rows of non-negative scores `(T, .)` sum to one. Zero rows are
    even over the experts that are on."""
    available = available_columns(
        conditions.available, routing_checks.num_columns(scores)
    )
    if available is None:
        return normalized(scores + 1e-20)
    return normalized(scores + 1e-20 * ops.cast(available, "float32"))


def softmax(logits: Tensor) -> Tensor:
    """`ops.softmax`, without its warning where there is one expert."""
    if logits.shape[-1] == 1:
        return ops.exp(ops.log_softmax(logits, axis=-1))
    return ops.softmax(logits, axis=-1)


def no_loss() -> Tensor:
    """Returns the loss of an algorithm that has none of its own."""
    return ops.zeros((), dtype="float32")


def pair_scores(assignment: Assignment) -> Tensor:
    """Returns the router probability of each pair, float32 `(P,)`."""
    check_assignment(assignment)
    probs = take_rows(
        ops.convert_to_tensor(assignment.router_probs),
        ops.convert_to_tensor(assignment.token_index),
    )
    last = routing_checks.num_columns(assignment.router_probs) - 1
    expert = ops.expand_dims(ops.minimum(assignment.expert_index, last), -1)
    return ops.squeeze(take_columns(probs, expert), -1)


def dense_weights(
    assignment: Assignment, pairs_per_token: int, experts: Tensor
) -> Tensor:
    """Returns the weights as a table, float32 `(T, n)`, zero where unused.

    Args:
        assignment: of a token-choice algorithm.
        pairs_per_token: K.
        experts: int32 `(n,)`, the `expert_index` of each column.
    """
    check_assignment(assignment)
    routing_checks.check_pairs(
        pairs_per_token, assignment.expert_index.shape[0]
    )
    index = ops.reshape(assignment.expert_index, (-1, pairs_per_token, 1))
    weights = ops.reshape(assignment.combine_weights, (-1, pairs_per_token, 1))
    hits = ops.equal(index, experts)
    return ops.sum(ops.where(hits, weights, ops.zeros_like(weights)), axis=1)
