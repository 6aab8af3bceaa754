"""Losses of how evenly and how surely experts are chosen.

T tokens, E experts, P routed pairs. `token_mask` is bool `(T,)`, False for
padding; a padding token's pairs carry the index E. Neither counts anywhere: a
padded batch has the loss of the batch without its padding, and a batch of
padding alone has the loss zero. `available` is bool `(E,)`, False for experts
that are off; None if all are on. The loss is that of the other experts alone.
"""

import math

from keras_moe.argument_checks import (
    check_assignment,
    check_bool,
    check_choice,
    check_count,
    check_positive_int,
    check_top_k,
    check_weight,
    is_static,
)
from keras_moe.kernels import (
    group_sizes_of,
    num_available,
    sum_over_replicas,
)
from keras_moe.kernels import light_ops as ops
from keras_moe.types import UNAVAILABLE, Assignment, Tensor

LOAD_BALANCING = ("switch", "per_sequence", "global_batch")


def load_balancing_loss(
    router_probs: Tensor,
    expert_index: Tensor,
    token_mask: Tensor | None = None,
    over_replicas: bool = False,
    available: Tensor | None = None,
) -> Tensor:
    """Load-balancing loss of Switch Transformers (Fedus et al. 2021, eq. 4-6).

    `E * sum_e f_e * P_e`, with `f_e` the share of the routed pairs that chose
    expert e and `P_e` its mean probability. It is 1 at perfect balance for
    any K and E when every token puts everything on one expert. The gradient
    flows through `P_e`. The paper has K = 1; for more, Hugging Face divides
    by T instead of P, so that its value is K times this one.

    Args:
        router_probs: float32 `(T, E)`.
        expert_index: int `(T, K)` or flat `(P,)`, the chosen experts before
            any is dropped for capacity; E and above are not counted.
        token_mask: bool `(T,)`; with it, pairs are K a token in order.
        over_replicas: whether `f_e` is that of the batches of all replicas
            (Qiu et al. 2025, "Demons in the Detail", section 3): experts may
            then specialise on what one replica's batch is full of.
        available: bool `(E,)`; with it, E counts the experts that are on.
    """
    check_bool("over_replicas", over_replicas)
    num_experts = router_probs.shape[-1]
    if token_mask is not None:
        expert_index = _mask_pairs(expert_index, token_mask, num_experts)
    return _balance_of_pairs(
        router_probs,
        expert_index,
        _count(available, num_experts),
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
    """`load_balancing_loss` of an `Assignment`: padding pairs have index E.
    Of the experts `num_on` are on, a float."""
    num_experts = router_probs.shape[-1]
    flat = ops.reshape(expert_index, (-1,))
    counts = ops.cast(group_sizes_of(flat, num_experts), "float32")
    if over_replicas:
        counts = sum_over_replicas(counts)
    share = counts / ops.maximum(ops.sum(counts), 1.0)
    mean_prob = _mean_over_tokens(router_probs, token_mask)
    return num_on * ops.sum(ops.stop_gradient(share) * mean_prob)


def sequence_balancing_loss(
    router_probs: Tensor,
    token_index: Tensor,
    expert_index: Tensor,
    num_sequences: int | Tensor,
    token_mask: Tensor | None = None,
    available: Tensor | None = None,
) -> Tensor:
    """Load-balancing loss of each sequence by itself (DeepSeek-V3, eq. 17-20).

    The mean over the sequences that are not all padding of `E * sum_e f_e *
    P_e`, with shares and probabilities of the sequence's own tokens.

    In the paper `f_e` counts the K best scores of a token without the bias
    and the limit of groups (eq. 18). Here it counts the pairs that were
    chosen, which differ only with a bias, groups, or null experts: it is the
    load that the experts get, and one loss for all routers.

    Args:
        router_probs: float32 `(T, E)`, sequence by sequence.
        token_index, expert_index: int32 `(P,)`; E and above are not counted.
        num_sequences: B, a divisor of T.
        token_mask: bool `(T,)`.
        available: bool `(E,)`; with it, E counts the experts that are on.
    """
    num_tokens, num_experts = ops.shape(router_probs)
    _check_divisor("num_sequences", num_sequences, num_tokens)
    num_on = _count(available, num_experts)
    return _balance_of_sequences(
        router_probs,
        token_index,
        expert_index,
        num_on,
        num_sequences,
        token_mask,
    )


def _balance_of_sequences(
    router_probs, token_index, expert_index, num_on, num_sequences, token_mask
):
    """`sequence_balancing_loss` where `num_on` experts are on, a float."""
    router_probs = ops.convert_to_tensor(router_probs)
    num_experts = router_probs.shape[-1]
    num_tokens = ops.shape(router_probs)[0]
    length = num_tokens // num_sequences
    sequence = ops.floor_divide(token_index, length)
    columns = num_experts + 1
    slots = sequence * columns + ops.minimum(expert_index, num_experts)
    ones = ops.cast(ops.ones_like(slots), "float32")
    counts = ops.segment_sum(ones, slots, num_sequences * columns)
    counts = ops.reshape(counts, (num_sequences, columns))[:, :num_experts]
    pairs = ops.sum(counts, axis=-1, keepdims=True)
    share = counts / ops.maximum(pairs, 1.0)
    valid = ops.ones_like(router_probs[:, :1])
    if token_mask is not None:
        valid = ops.cast(ops.expand_dims(token_mask, -1), "float32")
    by_sequence = (num_sequences, length, -1)
    tokens = ops.sum(ops.reshape(valid, by_sequence), axis=1)
    probs = ops.sum(ops.reshape(router_probs * valid, by_sequence), axis=1)
    mean_prob = probs / ops.maximum(tokens, 1.0)
    losses = num_on * ops.sum(ops.stop_gradient(share) * mean_prob, axis=-1)
    alive = ops.sum(ops.cast(tokens > 0, "float32"))
    return ops.sum(losses) / ops.maximum(alive, 1.0)


def balancing_loss(
    kind: str,
    assignment: Assignment,
    token_mask: Tensor | None = None,
    sequence_length: int | Tensor | None = None,
) -> Tensor:
    """Returns the load-balancing loss of an `Assignment`.

    Args:
        kind: `"switch"`, `"per_sequence"` or `"global_batch"`.
        assignment: Its padding pairs have the index E. Its `router_logits`
            are -1e30 for experts that are off.
        token_mask: bool `(T,)`.
        sequence_length: S, for `"per_sequence"`.
    """
    check_choice("kind", kind, LOAD_BALANCING)
    check_assignment(assignment)
    num_tokens, num_experts = ops.shape(assignment.router_probs)
    num_on = num_available(assignment.router_logits, num_experts)
    num_on = ops.cast(num_on, "float32")
    if kind == "per_sequence":
        _check_divisor("sequence_length", sequence_length, num_tokens)
        return _balance_of_sequences(
            assignment.router_probs,
            assignment.token_index,
            assignment.expert_index,
            num_on,
            num_tokens // sequence_length,
            token_mask,
        )
    return _balance_of_pairs(
        assignment.router_probs,
        assignment.expert_index,
        num_on,
        token_mask,
        over_replicas=kind == "global_batch",
    )


def router_z_loss(
    router_logits: Tensor,
    token_mask: Tensor | None = None,
    available: Tensor | None = None,
) -> Tensor:
    """Router z-loss of ST-MoE (Zoph et al. 2022, eq. 5).

    The mean over tokens of `log(sum_e exp(logits_e)) ** 2`: it keeps logits
    small, where float rounding matters less. 1e-3 is the paper's weight.

    Args:
        router_logits: float32 `(T, E)`. In an `Assignment`, those of experts
            that are off are so low that they add nothing to the sum.
        token_mask: bool `(T,)`.
        available: bool `(E,)`, for other logits.
    """
    if available is not None:
        router_logits = ops.convert_to_tensor(router_logits)
        router_logits = ops.where(available, router_logits, UNAVAILABLE)
    log_z = ops.logsumexp(router_logits, axis=-1, keepdims=True)
    return ops.sum(_mean_over_tokens(ops.square(log_z), token_mask))


def importance_loss(
    router_probs: Tensor,
    token_mask: Tensor | None = None,
    available: Tensor | None = None,
) -> Tensor:
    """Importance loss of Shazeer et al. 2017 (eq. 6-7), unweighted.

    The squared coefficient of variation over experts (variance by mean
    squared, population variance) of each expert's probability summed over
    the tokens. Zero when all experts weigh the same.

    Args:
        router_probs: float32 `(T, E)`; the paper sums the gates after top-k.
        token_mask: bool `(T,)`.
        available: bool `(E,)`.
    """
    importance = _mean_over_tokens(router_probs, token_mask)
    mean = _mean_over_experts(importance, available)
    variance = _mean_over_experts(ops.square(importance - mean), available)
    return variance / ops.maximum(ops.square(mean), 1e-20)


def load_loss(
    router_logits: Tensor,
    noisy_logits: Tensor,
    noise_std: float | Tensor,
    top_k: int,
    token_mask: Tensor | None = None,
    available: Tensor | None = None,
    num_null_experts: int = 0,
) -> Tensor:
    """Load loss of Shazeer et al. 2017 (eq. 8-11), unweighted.

    The squared coefficient of variation over experts of `P(x, e)` in the mean
    over tokens: the probability that expert e would be among token x's K best
    if its noise were drawn again, `Phi((logit - threshold) / noise_std)`. As
    in V-MoE (Riquelme et al. 2021, appendix A.2) the threshold is the K-th
    largest noisy logit, where the paper leaves the expert itself out.

    Args:
        router_logits: float32 `(T, E + N)`, without noise.
        noisy_logits: float32 `(T, E + N)`, by which experts were chosen.
        noise_std: standard deviation of the noise, a number or `(T, E + N)`.
        top_k: K.
        token_mask: bool `(T,)`.
        available: bool `(E,)`.
        num_null_experts: N, null experts, the last columns: experts compete
            with them, and the variation is that of the others alone.
    """
    router_logits = ops.convert_to_tensor(router_logits)
    noisy_logits = ops.convert_to_tensor(noisy_logits)
    check_top_k(top_k, router_logits.shape[-1])
    check_count("num_null_experts", num_null_experts)
    if is_static(noise_std) and not getattr(noise_std, "shape", ()):
        check_weight("noise_std", noise_std)
    noise_std = ops.convert_to_tensor(noise_std, dtype="float32")
    num_experts = router_logits.shape[-1] - num_null_experts
    if available is not None:
        on = ops.pad(available, [[0, num_null_experts]], constant_values=True)
        noisy_logits = ops.where(on, noisy_logits, UNAVAILABLE)
    threshold = ops.top_k(noisy_logits, top_k)[0][:, -1:]
    if num_null_experts:
        router_logits = router_logits[:, :num_experts]
        if len(ops.shape(noise_std)):
            noise_std = noise_std[:, :num_experts]
    z = (router_logits - threshold) / ops.maximum(noise_std, 1e-6)
    probs = 0.5 * (1.0 + ops.erf(z / math.sqrt(2.0)))
    return importance_loss(probs, token_mask, available)


def _count(available, num_experts):
    """How many experts are on, a number or a float scalar."""
    if available is None:
        return num_experts
    return ops.sum(ops.cast(available, "float32"))


def _mean_over_experts(values, available):
    """Mean of `(E,)` over the experts that are on."""
    if available is None:
        return ops.mean(values)
    only = ops.where(available, values, ops.zeros_like(values))
    return ops.sum(only) / _count(available, values.shape[0])


def _check_divisor(name, value, num_tokens):
    """Raise if a plain number does not divide the tokens into sequences."""
    if not is_static(value):
        return
    number = check_positive_int(name, value)
    if isinstance(num_tokens, int) and num_tokens % number:
        raise ValueError(
            f"`{name}` must divide the number of tokens. Received: {name}="
            f"{value!r}, {num_tokens} tokens. Pass all tokens of each sequence."
        )


def _mask_pairs(expert_index, token_mask, num_experts):
    """Gives the pairs of padding tokens the index E: `(T, K)`."""
    num_tokens = divisor = ops.shape(token_mask)[0]
    flat = ops.reshape(expert_index, (-1,))
    if isinstance(num_tokens, int):
        divisor = max(num_tokens, 1)
    elif ops.is_tensor(num_tokens):  # a symbolic dimension is at least 1
        divisor = ops.maximum(num_tokens, 1)
    pairs_per_token = ops.shape(flat)[0] // divisor
    pairs = ops.reshape(flat, (num_tokens, pairs_per_token))
    return ops.where(ops.expand_dims(token_mask, -1), pairs, num_experts)


def _mean_over_tokens(values, token_mask):
    """Mean of `(T, .)` over the tokens that are not padding: `(.,)`."""
    values = ops.cast(values, "float32")
    if token_mask is None:
        token_mask = ops.ones_like(values[:, 0], dtype="bool")
    valid = ops.expand_dims(token_mask, -1)
    total = ops.sum(ops.where(valid, values, ops.zeros_like(values)), axis=0)
    count = ops.sum(ops.cast(token_mask, "float32"))
    return total / ops.maximum(count, 1.0)
