"""Floor 1: auxiliary losses of routing. Pure functions, float32 scalars.

T tokens, E experts, P routed pairs. `token_mask` is bool `(T,)`, False for
padding; a padding token's pairs carry the index E. Neither counts anywhere: a
padded batch has the loss of the batch without its padding, and a batch of
padding alone has the loss zero.
"""

from keras import ops

from keras_moe.kernels import group_sizes_of
from keras_moe.types import Tensor


def load_balancing_loss(
    router_probs: Tensor,
    expert_index: Tensor,
    token_mask: Tensor | None = None,
) -> Tensor:
    """Load-balancing loss of Switch Transformers (Fedus et al. 2021, eq. 4-6).

    `E * sum_e f_e * P_e`, with `f_e` the share of the routed pairs that chose
    expert e and `P_e` its mean probability. It is 1 at perfect balance for
    any K and E when every token puts everything on one expert. The gradient
    flows through `P_e`. The paper has K = 1; for more, Hugging Face divides
    by T instead of P, so that its value is K times this one.

    Args:
        router_probs: float32 `(T, E)`.
        expert_index: int `(T, K)` or flat `(T * K,)`, the chosen experts
            before any is dropped for capacity; an index E is not counted.
        token_mask: bool `(T,)`.
    """
    num_experts = router_probs.shape[-1]
    if token_mask is not None:
        expert_index = _mask_pairs(expert_index, token_mask, num_experts)
    counts = ops.cast(group_sizes_of(expert_index, num_experts), "float32")
    share = counts / ops.maximum(ops.sum(counts), 1.0)
    mean_prob = _mean_over_tokens(router_probs, token_mask)
    return num_experts * ops.sum(ops.stop_gradient(share) * mean_prob)


def router_z_loss(
    router_logits: Tensor, token_mask: Tensor | None = None
) -> Tensor:
    """Router z-loss of ST-MoE (Zoph et al. 2022, eq. 5).

    The mean over tokens of `log(sum_e exp(logits_e)) ** 2`: it keeps logits
    small, where float rounding matters less. 1e-3 is the paper's weight.

    Args:
        router_logits: float32 `(T, E)`.
        token_mask: bool `(T,)`.
    """
    log_z = ops.logsumexp(router_logits, axis=-1, keepdims=True)
    return ops.sum(_mean_over_tokens(ops.square(log_z), token_mask))


def importance_loss(
    router_probs: Tensor, token_mask: Tensor | None = None
) -> Tensor:
    """Importance loss of Shazeer et al. 2017 (eq. 6-7), unweighted.

    The squared coefficient of variation over experts (variance by mean
    squared, population variance) of each expert's probability summed over
    the tokens. Zero when all experts weigh the same.

    Args:
        router_probs: float32 `(T, E)`; the paper sums the gates after top-k.
        token_mask: bool `(T,)`.
    """
    importance = _mean_over_tokens(router_probs, token_mask)
    mean = ops.mean(importance)
    variance = ops.mean(ops.square(importance - mean))
    return variance / ops.maximum(ops.square(mean), 1e-20)


def _mask_pairs(expert_index, token_mask, num_experts):
    """Gives the pairs of padding tokens the index E: `(T, K)`."""
    num_tokens, flat = (
        ops.shape(token_mask)[0],
        ops.reshape(expert_index, (-1,)),
    )
    at_least_one = max if isinstance(num_tokens, int) else ops.maximum
    pairs_per_token = ops.shape(flat)[0] // at_least_one(num_tokens, 1)
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
