"""ReLU routing: a token uses every expert with a positive logit.

T tokens, E experts, K top_k, M the most experts per token.
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
    """Send each token to all experts with positive logits.

    The weight of an expert is its logit.

    Reference: Wang et al. 2024, "ReMoE: Fully Differentiable
    Mixture-of-Experts with ReLU Routing", eq. 6, and eq. 10-11 for the
    load-balanced L1 loss.

    Args:
        router_logits: float32 `(T, E)`.
        max_experts: int. M. If a token has more than M positive logits, the M
            largest are used.
        top_k: float. K, the desired mean number of experts per token.
        l1_coefficient: float32 `(1,)`. Weight of the L1 loss.
        conditions: `Conditions` of the batch.
        over_replicas: bool. Whether the loss is that of the tokens of all
            replicas together; then every replica must make the call. Defaults
            to `False`.

    Returns:
        An `Assignment` with M pairs per token, its best expert first. Pairs
        with the weight zero are not computed.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    assignment = keras_moe.routing.relu_assignment(
        logits, max_experts=3, top_k=2, l1_coefficient=ops.full((1,), 0.01)
    )
    ```
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
        # Not `weights > 0`, so that NaN reaches the outputs.
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
    """Return the coefficient of the L1 loss for the next step.

    It is multiplied by `growth` if tokens use more than K experts on average,
    up to 1e4 (the paper has no bound), and divided by it if they use fewer.
    The paper has one coefficient for all layers of a model; here each router
    has its own.

    Reference: Wang et al. 2024, "ReMoE: Fully Differentiable
    Mixture-of-Experts with ReLU Routing", eq. 8.

    Args:
        l1_coefficient: float32 `(1,)`.
        router_logits: float32 `(T, E)`.
        top_k: float. K.
        growth: float above 1. The paper uses 1.2.
        token_mask: bool `(T,)`. False for padding. `None` (the default) if no
            token is padding.
        available: bool `(E,)`. False for experts that are off, which are not
            counted. `None` (the default) if all are on.

    Example:

    ```python
    logits = keras.random.normal((6, 4))  # 6 tokens, 4 experts
    coefficient = keras_moe.routing.next_l1_coefficient(
        ops.full((1,), 0.01), logits, top_k=2, growth=1.2
    )
    ```
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
    """Return the sum over experts of their load times their mean gate."""
    num_on: int | Tensor = gates.shape[-1]
    if conditions.available is not None:
        num_on = ops.sum(ops.cast(conditions.available, "float32"))
    valid = _valid(gates, conditions.counted)
    tokens = ops.sum(valid)
    active = ops.cast(gates > 0, "float32")
    sums = ops.sum(ops.stack([gates, active]) * valid, axis=1)
    means = mean_of_units(sums, tokens, over_replicas)
    mean_gate, active_share = ops.unstack(means, 2)
    load = ops.stop_gradient(active_share) * (num_on / top_k)
    return ops.sum(load * mean_gate)


def _valid(values: Tensor, token_mask: Tensor | None) -> Tensor:
    """Return the mask as float `(T, 1)`, zero for padding."""
    if token_mask is None:
        return ops.ones_like(values[:, :1])
    return ops.cast(ops.expand_dims(token_mask, -1), "float32")
