"""Losses that balance the load of experts.

T tokens, E experts, P routed pairs. `token_mask` is bool `(T,)`, False for
padding; the pairs of padding tokens have the index E. Both are excluded: a
padded batch has the loss of the batch without its padding, and a batch of
padding alone has the loss zero. `available` is bool `(E,)`, False for experts
that are off; None if all are on. Experts that are off are excluded.
"""

from keras_moe.checks import check_assignment, check_bool, check_choice
from keras_moe.kernels import group_sizes_of, mean_over_replicas, num_available
from keras_moe.kernels import light_ops as ops
from keras_moe.losses.sequence_balance import (
    balance_of_sequences,
    checked_divisor,
)
from keras_moe.losses.sums import count_available, sum_over_tokens
from keras_moe.types import Assignment, Tensor

LOAD_BALANCING = ("switch", "per_sequence", "global_batch")


def load_balancing_loss(
    router_probs: Tensor,
    expert_index: Tensor,
    token_mask: Tensor | None = None,
    over_replicas: bool = False,
    available: Tensor | None = None,
) -> Tensor:
    """Return the load-balancing loss of Switch Transformers.

    It is `E * sum_e f_e * P_e`, with `f_e` the share of the routed pairs that
    chose expert e, and `P_e` the mean probability of the expert. It is 1 at
    perfect balance, and E / K if every token chooses the same experts and puts
    all probability on one of them. The gradient flows through `P_e`. The paper
    has K = 1. For larger K, Hugging Face divides by T instead of P, so that its
    value is K times as large.

    Reference: Fedus et al. 2021, "Switch Transformers", eq. 4-6.

    Args:
        router_probs: float32 `(T, E)`.
        expert_index: int `(T, K)` or flat `(P,)`. The chosen experts, before
            any pair is dropped for capacity. An index of E or above is not
            counted.
        token_mask: bool `(T,)`. False for padding. With a mask, every token
            must have K pairs, in order. `None` (the default) if no token is
            padding.
        over_replicas: bool. Whether `f_e` and `P_e` are those of the batches
            of all replicas together (Qiu et al. 2025, "Demons in the Detail",
            section 3). An expert may then specialize in tokens that one
            replica's batch has many of. Every replica must make the call. The
            gradient averaged over the replicas is that of one large batch,
            also if the replicas have different numbers of real tokens.
            Defaults to `False`.
        available: bool `(E,)`. False for experts that are off; then E counts
            the experts that are on. `None` (the default) if all are on.

    Example:

    ```python
    probs = ops.full((4, 2), 0.5)  # 4 tokens, 2 experts
    expert_index = np.array([[0], [1], [0], [1]], "int32")
    loss = keras_moe.losses.load_balancing_loss(probs, expert_index)  # 1.0
    ```
    """
    check_bool("over_replicas", over_replicas)
    num_experts = router_probs.shape[-1]
    if token_mask is not None:
        expert_index = _mask_pairs(expert_index, token_mask, num_experts)
    return _balance_of_pairs(
        router_probs,
        expert_index,
        count_available(available, num_experts),
        token_mask,
        over_replicas,
    )


def _balance_of_pairs(
    router_probs: Tensor,
    expert_index: Tensor,
    num_on: int | Tensor,
    token_mask: Tensor | None = None,
    over_replicas: bool = False,
) -> Tensor:
    """Return the `load_balancing_loss` of an `Assignment`.

    Padding pairs have the index E. `num_on` is the number of experts that are
    on, a float.
    """
    num_experts = router_probs.shape[-1]
    flat = ops.reshape(expert_index, (-1,))
    counts = ops.cast(group_sizes_of(flat, num_experts), "float32")
    total, num_tokens = sum_over_tokens(router_probs, token_mask)
    if over_replicas:
        both = ops.stack([total, counts])
        mean_prob, counts = ops.unstack(
            mean_over_replicas(both, num_tokens), 2
        )  # counts per token, which give the same shares below
    else:
        mean_prob = total / ops.maximum(num_tokens, 1.0)
    share = counts / ops.maximum(ops.sum(counts), 1e-20)
    return num_on * ops.sum(ops.stop_gradient(share) * mean_prob)


def balancing_loss(
    kind: str,
    assignment: Assignment,
    token_mask: Tensor | None = None,
    sequence_length: int | Tensor | None = None,
    over_replicas: bool = False,
) -> Tensor:
    """Return the load-balancing loss of an `Assignment`.

    Args:
        kind: str. `"switch"` (`load_balancing_loss`), `"global_batch"` (the
            same over all replicas), or `"per_sequence"`
            (`sequence_balancing_loss`).
        assignment: `Assignment`. Its padding pairs have the index E. Its
            `router_logits` are -1e30 for experts that are off.
        token_mask: bool `(T,)`. False for padding. `None` (the default) if no
            token is padding.
        sequence_length: int or int32 scalar. S, a divisor of T. Only
            `"per_sequence"` needs it.
        over_replicas: bool. Whether `"per_sequence"` takes its mean over the
            sequences of all replicas. Defaults to `False`.
            `"global_batch"` always covers all replicas, `"switch"` never.

    Example:

    ```python
    assignment = keras_moe.Router(4)(keras.random.normal((6, 16)))
    loss = keras_moe.losses.balancing_loss("switch", assignment)
    ```
    """
    check_bool("over_replicas", over_replicas)
    check_choice("kind", kind, LOAD_BALANCING)
    check_assignment(assignment)
    num_tokens, num_experts = ops.shape(assignment.router_probs)
    num_on = num_available(assignment.router_logits, num_experts)
    num_on = ops.cast(num_on, "float32")
    if kind == "per_sequence":
        sequence_length = checked_divisor(
            "sequence_length", sequence_length, num_tokens
        )
        return balance_of_sequences(
            assignment.router_probs,
            assignment.token_index,
            assignment.expert_index,
            num_on,
            num_tokens // sequence_length,
            token_mask,
            over_replicas,
        )
    return _balance_of_pairs(
        assignment.router_probs,
        assignment.expert_index,
        num_on,
        token_mask,
        over_replicas=kind == "global_batch",
    )


def _mask_pairs(
    expert_index: Tensor, token_mask: Tensor | None, num_experts: int
) -> Tensor:
    """Return `(T, K)` indices, E for the pairs of padding tokens."""
    num_tokens = divisor = ops.shape(token_mask)[0]
    flat = ops.reshape(expert_index, (-1,))
    if isinstance(num_tokens, int):
        divisor = max(num_tokens, 1)
    elif ops.is_tensor(num_tokens):  # a symbolic dimension is at least 1
        divisor = ops.maximum(num_tokens, 1)
    pairs_per_token = ops.shape(flat)[0] // divisor
    pairs = ops.reshape(flat, (num_tokens, pairs_per_token))
    return ops.where(ops.expand_dims(token_mask, -1), pairs, num_experts)
