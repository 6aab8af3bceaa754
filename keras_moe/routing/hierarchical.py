"""Choose groups of experts first, and then experts in these groups.

T tokens, E experts, G groups of E / G consecutive experts, M top_k_groups, K
top_k, of which K / M are in each chosen group.
"""

from keras import ops

from keras_moe.checks import routing_checks
from keras_moe.kernels import take_columns, top_k_index
from keras_moe.routing.assignment import (
    UNCONDITIONAL,
    Choice,
    Conditions,
    available_logits,
    normalized,
    only_available,
    replayed,
    softmax,
    token_choice,
)
from keras_moe.types import UNAVAILABLE, Assignment, Tensor


def hierarchical_assignment(
    group_logits: Tensor,
    expert_logits: Tensor,
    top_k: int,
    top_k_groups: int = 1,
    normalize_weights: bool = True,
    conditions: Conditions = UNCONDITIONAL,
) -> Assignment:
    """Choose M groups for each token, and K / M experts in each group.

    The probability of an expert is that of its group times that of the expert
    within the group. Its weight is the product of the same two factors. If a
    stage chooses several, its factor is divided by the sum over the chosen
    ones. If a stage chooses one, its factor remains the probability, so that
    the stage gets a gradient. The paper adds noise before both choices, which
    a router may add to the logits.

    Reference: Shazeer et al. 2017, "Outrageously Large Neural Networks",
    appendix B, eq. 12; with all groups and experts, Jordan & Jacobs 1994,
    section 2.

    Args:
        group_logits: float32 `(T, G)`.
        expert_logits: float32 `(T, E)`, group by group.
        top_k: int. K, a multiple of M.
        top_k_groups: int. M, 1 to G. Defaults to 1.
        normalize_weights: bool. Whether the factors are divided by their sums
            over the chosen ones. Defaults to `True`.
        conditions: `Conditions` of the batch. A group whose experts are all
            off is chosen last. A chosen expert that is off is excluded.

    Returns:
        An `Assignment` with K pairs per token, those of its best group first.
        `router_logits` are the logarithms of `router_probs` plus
        `log sum_e exp(group_logit + expert_logit)`. Their softmax is
        `router_probs`, and they include a common offset of either stage's
        logits, so that a z-loss keeps both stages small. With one group they
        are the logits of the experts, since there is no choice of a group.

    Example:

    ```python
    assignment = keras_moe.routing.hierarchical_assignment(
        group_logits=keras.random.normal((6, 2)),
        expert_logits=keras.random.normal((6, 8)),
        top_k=2,
    )
    ```
    """
    num_groups = routing_checks.num_columns(group_logits)
    num_experts = routing_checks.num_columns(expert_logits)
    routing_checks.check_token_choice(
        top_k, num_experts, normalize_weights, conditions
    )
    routing_checks.check_groups(num_experts, top_k, num_groups, top_k_groups)
    routing_checks.check_even_groups(top_k, top_k_groups)
    size = num_experts // num_groups
    expert_logits = ops.convert_to_tensor(expert_logits)
    masked = available_logits(expert_logits, conditions)
    group_logits = _available_groups(group_logits, conditions, size)
    if num_groups == 1:
        group_logits = ops.zeros_like(group_logits)
    of_group = ops.exp(ops.log_softmax(group_logits, axis=-1))
    of_group = ops.repeat(of_group, size, axis=-1)
    in_group = softmax(ops.reshape(masked, (-1, num_groups, size)))
    in_group = ops.reshape(in_group, (-1, num_experts))
    columns = _choose(group_logits, masked, top_k, top_k_groups)
    if conditions.replay is None:
        choice = only_available(Choice(columns), conditions, num_experts)
    else:
        choice = replayed(columns, conditions.replay, conditions, num_experts)
    by_group = (-1, top_k_groups, top_k // top_k_groups)
    weights = _weights(
        ops.reshape(choice.values(of_group), by_group),
        ops.reshape(choice.values(in_group), by_group),
        normalize_weights,
    )
    return token_choice(
        available_logits(_joint_logits(group_logits, masked), conditions),
        of_group * in_group,
        choice,
        ops.reshape(weights, (-1, top_k)),
        conditions,
    )


def _joint_logits(group_logits: Tensor, expert_logits: Tensor) -> Tensor:
    """Return the logits of both stages together, `(T, E)`."""
    num_groups = routing_checks.num_columns(group_logits)
    num_experts = routing_checks.num_columns(expert_logits)
    size = num_experts // num_groups
    by_group = ops.reshape(expert_logits, (-1, num_groups, size))
    in_group = ops.log_softmax(by_group, axis=-1)
    of_group = ops.log_softmax(group_logits, axis=-1)
    log_probs = ops.expand_dims(of_group, -1) + in_group
    joint = ops.expand_dims(group_logits, -1) + by_group
    joint = ops.reshape(joint, (-1, num_experts))
    log_sum = ops.logsumexp(joint, axis=-1, keepdims=True)
    return ops.reshape(log_probs, (-1, num_experts)) + log_sum


def _available_groups(
    group_logits: Tensor, conditions: Conditions, size: int
) -> Tensor:
    """Set the logits of groups whose experts are all off to `UNAVAILABLE`."""
    group_logits = ops.convert_to_tensor(group_logits)
    if conditions.available is None:
        return group_logits
    experts = ops.reshape(conditions.available, (-1, size))
    return ops.where(ops.any(experts, axis=-1), group_logits, UNAVAILABLE)


def _choose(
    group_logits: Tensor, expert_logits: Tensor, top_k: int, top_k_groups: int
) -> Tensor:
    """Return the best experts of the best groups, as columns `(T, K)`."""
    num_groups = routing_checks.num_columns(group_logits)
    size = routing_checks.num_columns(expert_logits) // num_groups
    groups = ops.reshape(top_k_index(group_logits, top_k_groups), (-1, 1))
    columns = groups * size + ops.arange(size, dtype="int32")
    logits = take_columns(
        expert_logits, ops.reshape(columns, (-1, top_k_groups * size))
    )
    logits = ops.reshape(logits, (-1, size))
    columns = groups * size + top_k_index(logits, top_k // top_k_groups)
    return ops.reshape(columns, (-1, top_k))


def _weights(of_group: Tensor, in_group: Tensor, normalize: bool) -> Tensor:
    """Return the product of both stages' factors, `(T, M, K / M)`.

    Both factors are zero for a choice that is excluded.
    """
    if normalize and of_group.shape[-1] > 1:
        in_group = normalized(in_group)
    if normalize and of_group.shape[1] > 1:
        computed = ops.cast(of_group > 0, "float32")
        computed = ops.maximum(ops.sum(computed, axis=-1), 1.0)
        # The entries of a group are equal or zero. This is the mean of the
        # others.
        each = ops.sum(of_group, axis=-1) / computed
        total = ops.sum(each, axis=-1, keepdims=True)
        of_group = of_group / ops.expand_dims(ops.maximum(total, 1e-20), -1)
    return of_group * in_group
