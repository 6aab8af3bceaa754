"""Floor 1: metrics of routing. Pure functions, float32.

T tokens, E experts, P routed pairs, G groups of tokens. A pair with the index
E is not computed.
"""

from keras import ops

from keras_moe.checks import check_positive_int
from keras_moe.kernels import group_sizes_of
from keras_moe.types import Tensor


def expert_load(expert_index: Tensor, num_experts: int) -> Tensor:
    """Return the share of the routed pairs that each expert received, `(E,)`.

    The shares sum to one. They are all zero if no pair was routed.

    Args:
        expert_index: int `(P,)`. The expert of each pair. An index of E or
            above is not counted.
        num_experts: int. E.

    Example:

    ```python
    load = keras_moe.metrics.expert_load(
        np.array([0, 0, 1, 3], "int32"), num_experts=4
    )  # 0.5, 0.25, 0.0, 0.25
    ```
    """
    num_experts = check_positive_int("num_experts", num_experts)
    counts = ops.cast(group_sizes_of(expert_index, num_experts), "float32")
    return counts / ops.maximum(ops.sum(counts), 1.0)


def expert_load_by_group(
    expert_index: Tensor,
    token_index: Tensor,
    group: Tensor,
    num_experts: int,
    num_groups: int,
) -> Tensor:
    """Return the share of each group's pairs that each expert got, `(G, E)`.

    A group may be a modality, a domain, or a position in the sequence. Each
    row sums to one. It is zero if no pair of the group was routed.

    Args:
        expert_index, token_index: int `(P,)`, of an `Assignment`.
        group: int, of any shape with T elements. The group of each token, in
            0 ... G - 1. A token with another number is not counted.
        num_experts: int. E.
        num_groups: int. G.

    Example:

    ```python
    load = keras_moe.metrics.expert_load_by_group(
        expert_index=np.array([0, 1, 1], "int32"),
        token_index=np.array([0, 1, 2], "int32"),
        group=np.array([0, 0, 1], "int32"),  # the group of each token
        num_experts=2,
        num_groups=2,
    )  # [[0.5, 0.5], [0.0, 1.0]]
    ```
    """
    num_experts = check_positive_int("num_experts", num_experts)
    num_groups = check_positive_int("num_groups", num_groups)
    group = ops.cast(ops.reshape(group, (-1,)), "int32")
    of_pair = ops.take(group, token_index, axis=0)
    groups = ops.arange(num_groups, dtype="int32")
    in_group = ops.equal(ops.expand_dims(groups, -1), of_pair)
    experts = ops.arange(num_experts, dtype="int32")
    chosen = ops.equal(ops.expand_dims(expert_index, -1), experts)
    counts = ops.matmul(
        ops.cast(in_group, "float32"), ops.cast(chosen, "float32")
    )
    total = ops.sum(counts, axis=-1, keepdims=True)
    return counts / ops.maximum(total, 1.0)


def load_imbalance(load: Tensor, available: Tensor | None = None) -> Tensor:
    """Return the largest load divided by the mean load, a scalar.

    It is 1 at perfect balance, E if one expert receives everything, and 0 if
    nothing was routed.

    Args:
        load: `(E,)`. Counts or shares.
        available: bool `(E,)`. False for experts that are off, which are
            excluded from the mean. `None` (the default) if all are on.

    Example:

    ```python
    imbalance = keras_moe.metrics.load_imbalance(
        np.array([3, 1], "float32")
    )  # 3 / 2
    ```
    """
    load = ops.cast(load, "float32")
    if available is None:
        return ops.max(load) / ops.maximum(ops.mean(load), 1e-20)
    load = ops.where(available, load, ops.zeros_like(load))
    num_on = ops.maximum(ops.sum(ops.cast(available, "float32")), 1.0)
    return ops.max(load) / ops.maximum(ops.sum(load) / num_on, 1e-20)


def fraction_dropped(
    expert_index: Tensor, kept_expert_index: Tensor, num_experts: int
) -> Tensor:
    """Return the share of the routed pairs that capacity dropped, a scalar.

    Padding is not routed and therefore excluded.

    Args:
        expert_index: int `(P,)`. The expert of each pair before capacity.
        kept_expert_index: int `(P,)`. The expert of each pair after capacity.
        num_experts: int. E.

    Example:

    ```python
    share = keras_moe.metrics.fraction_dropped(
        np.array([0, 0, 1, 0], "int32"),
        np.array([0, 0, 1, 2], "int32"),  # 2 is E: the last pair was dropped
        num_experts=2,
    )  # 0.25
    ```
    """
    num_experts = check_positive_int("num_experts", num_experts)

    def routed(index: Tensor) -> Tensor:
        return ops.sum(ops.cast(index < num_experts, "float32"))

    before, after = routed(expert_index), routed(kept_expert_index)
    return (before - after) / ops.maximum(before, 1.0)


def router_entropy(
    router_probs: Tensor, token_mask: Tensor | None = None
) -> Tensor:
    """Return the mean entropy of the tokens' probabilities in nats, a scalar.

    It is `log(E)` if all experts have the same probability, and 0 if one has
    the probability 1.

    Args:
        router_probs: float `(T, E)`.
        token_mask: bool `(T,)`. False for padding, which is excluded. `None`
            (the default) if no token is padding.

    Example:

    ```python
    entropy = keras_moe.metrics.router_entropy(ops.full((6, 4), 0.25))  # log(4)
    ```
    """
    probs = ops.cast(router_probs, "float32")
    logs = ops.log(ops.maximum(probs, 1e-30))
    entropy = ops.negative(ops.sum(probs * logs, axis=-1))
    if token_mask is None:
        token_mask = ops.ones_like(entropy, dtype="bool")
    valid = ops.where(token_mask, entropy, ops.zeros_like(entropy))
    count = ops.sum(ops.cast(token_mask, "float32"))
    return ops.sum(valid) / ops.maximum(count, 1.0)
