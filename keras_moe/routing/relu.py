"""Weights that are zero where an expert is not needed.

T tokens, E experts, K top_k, M the most experts a token may have.
"""

from keras import ops

from keras_moe.checks import (
    INFINITY,
    check_above,
    check_bool,
    check_positive_int,
    routing_checks,
)
from keras_moe.kernels import mean_of_units, sum_over_replicas
from keras_moe.routing.assignment import (
    UNCONDITIONAL,
    Conditions,
    as_probabilities,
    available_logits,
    choose,
    token_choice,
)
from keras_moe.types import Assignment, Tensor

MOST_L1 = 1e4


def relu_assignment(
    router_logits: Tensor,
    max_experts: int,
    top_k: float,
    l1_coefficient: Tensor,
    conditions: Conditions = UNCONDITIONAL,
    over_replicas: bool = False,
) -> Assignment:
    """Each token uses every expert whose logit is above zero, by that logit
    (Wang et al. 2024, "ReMoE: Fully Differentiable Mixture-of-Experts with
    ReLU Routing", eq. 6; the load-balanced L1 loss is eq. 10-11).

    Args:
        router_logits: float32 `(T, E)`.
        max_experts: M; of more than M positive logits the M largest count.
        top_k: K, the mean number of experts that is aimed at.
        l1_coefficient: float32 `(1,)`, weight of the L1 loss.
        conditions: of the batch.
        over_replicas: Whether the loss is that of the tokens of all replicas
            together; every replica must make the call.

    Returns:
        An `Assignment` with M pairs a token, its best expert first; those of
        weight zero are not computed.
    """
    router_logits = ops.convert_to_tensor(router_logits)
    num_experts = routing_checks.num_columns(router_logits)
    routing_checks.check_conditions(conditions)
    check_bool("over_replicas", over_replicas)
    check_above("top_k", top_k, 0, num_experts)
    check_above(
        "max_experts",
        check_positive_int("max_experts", max_experts),
        0,
        num_experts,
    )
    router_logits = available_logits(router_logits, conditions)
    gates = ops.relu(router_logits)
    choice = choose(gates, max_experts, conditions)
    weights = choice.values(gates)
    if conditions.replay is None:
        # Not `weights > 0`: NaN passes, to be seen.
        choice = choice.only(ops.logical_not(weights <= 0))
    coefficient = ops.convert_to_tensor(l1_coefficient)
    loss = coefficient * _balanced_l1(gates, top_k, conditions, over_replicas)
    return token_choice(
        router_logits,
        as_probabilities(gates, conditions),
        choice,
        weights,
        conditions,
        router_loss=ops.sum(loss),
    )


def next_l1_coefficient(
    l1_coefficient: Tensor,
    router_logits: Tensor,
    top_k: float,
    growth: float,
    token_mask: Tensor | None = None,
    available: Tensor | None = None,
) -> Tensor:
    """Returns the coefficient for the next step (ReMoE, eq. 8).

    It grows by the factor if more than K of E experts are active in the mean,
    up to 1e4 (the paper has no bound), and shrinks by it if fewer are. The
    paper has one coefficient for all layers of a model; here each router has
    its own.

    Args:
        l1_coefficient: float32 `(1,)`.
        router_logits: float32 `(T, E)`.
        top_k: K.
        growth: above 1; 1.2 in the paper.
        token_mask: bool `(T,)`.
        available: bool `(E,)`, False for experts that are off, which are not
            counted; or None.
    """
    router_logits = ops.convert_to_tensor(router_logits)
    check_above("top_k", top_k, 0, INFINITY)
    check_above("growth", growth, 1, INFINITY)
    conditions = Conditions(token_mask, available)
    router_logits = available_logits(router_logits, conditions)
    active = ops.cast(router_logits > 0, "float32")
    valid = _valid(router_logits, token_mask)
    count = sum_over_replicas(ops.sum(active * valid))
    tokens = sum_over_replicas(ops.sum(valid))
    direction = ops.sign(count - top_k * tokens)
    moved = ops.convert_to_tensor(l1_coefficient) * ops.power(
        float(growth), direction
    )
    return ops.minimum(moved, MOST_L1)


def _balanced_l1(
    gates: Tensor, top_k: float, conditions: Conditions, over_replicas: bool
) -> Tensor:
    """Sum over the experts of their load times their mean gate."""
    num_on: int | Tensor = gates.shape[-1]
    if conditions.available is not None:
        num_on = ops.sum(ops.cast(conditions.available, "float32"))
    valid = _valid(gates, conditions.token_mask)
    tokens = ops.sum(valid)
    active = ops.cast(gates > 0, "float32")
    sums = ops.sum(ops.stack([gates, active]) * valid, axis=1)
    means = mean_of_units(sums, tokens, over_replicas)
    mean_gate, active_share = ops.unstack(means, 2)
    load = ops.stop_gradient(active_share) * (num_on / top_k)
    return ops.sum(load * mean_gate)


def _valid(values: Tensor, token_mask: Tensor | None) -> Tensor:
    """Float `(T, 1)`, zero for padding."""
    if token_mask is None:
        return ops.ones_like(values[:, :1])
    return ops.cast(ops.expand_dims(token_mask, -1), "float32")
