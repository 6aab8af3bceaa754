"""Losses that balance the use of experts, of Shazeer et al. 2017.

T tokens, E experts, N null experts. Padding tokens and experts that are off
are excluded, as in `balance.py`.
"""

import math

from keras_moe.checks import (
    check_bool,
    check_count,
    check_top_k,
    check_weight,
    is_same_shape,
    is_static,
)
from keras_moe.kernels import light_ops as ops
from keras_moe.losses.sums import count_available, mean_over_tokens
from keras_moe.types import UNAVAILABLE, Tensor


def importance_loss(
    router_probs: Tensor,
    token_mask: Tensor | None = None,
    available: Tensor | None = None,
    over_replicas: bool = False,
) -> Tensor:
    """Return the importance loss, unweighted.

    An expert's importance is its probability, summed over the tokens. The loss
    is the squared coefficient of variation of the importance over experts: the
    (population) variance divided by the squared mean. It is zero if all experts
    have the same importance.

    Reference: Shazeer et al. 2017, "Outrageously Large Neural Networks",
    eq. 6-7.

    Args:
        router_probs: float32 `(T, E)`. The paper uses the gates after top-k.
        token_mask: bool `(T,)`. False for padding. `None` (the default) if no
            token is padding.
        available: bool `(E,)`. False for experts that are off. `None` (the
            default) if all are on.
        over_replicas: bool. Whether the tokens are those of all replicas
            together; then every replica must make the call. The gradient
            averaged over the replicas is that of one large batch. Defaults to
            `False`.

    Example:

    ```python
    probs = ops.full((4, 2), 0.5)
    loss = keras_moe.losses.importance_loss(probs)  # 0.0
    ```
    """
    check_bool("over_replicas", over_replicas)
    importance = mean_over_tokens(router_probs, token_mask, over_replicas)
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
    over_replicas: bool = False,
) -> Tensor:
    """Return the load loss, unweighted.

    `P(x, e) = Phi((logit - threshold) / noise_std)` is the probability that
    expert e would be among the K best of token x if its noise were drawn
    again. The loss is the squared coefficient of variation over experts of the
    mean of `P(x, e)` over tokens. As in V-MoE, the threshold is the K-th
    largest noisy logit; Shazeer et al. leave the expert itself out.

    Reference: Shazeer et al. 2017, "Outrageously Large Neural Networks",
    eq. 8-11; Riquelme et al. 2021, "Scaling Vision with Sparse Mixture of
    Experts", appendix A.2.

    Args:
        router_logits: float32 `(T, E + N)`. The logits without noise.
        noisy_logits: float32 `(T, E + N)`. The logits that the choice used.
        noise_std: float or `(T, E + N)`. Standard deviation of the noise.
        top_k: int. K.
        token_mask: bool `(T,)`. False for padding. `None` (the default) if no
            token is padding.
        available: bool `(E,)`. False for experts that are off. `None` (the
            default) if all are on.
        num_null_experts: int. N, the number of null experts, whose columns are
            the last. Experts compete with null experts, but only experts are
            in the coefficient of variation. Defaults to 0.
        over_replicas: bool. As in `importance_loss`.

    Example:

    ```python
    logits = keras.random.normal((6, 4))
    noisy = logits + keras.random.normal((6, 4))
    loss = keras_moe.losses.load_loss(logits, noisy, noise_std=1.0, top_k=2)
    ```
    """
    router_logits = ops.convert_to_tensor(router_logits)
    noisy_logits = ops.convert_to_tensor(noisy_logits)
    top_k = check_top_k(top_k, router_logits.shape[-1])
    num_null_experts = check_count("num_null_experts", num_null_experts)
    if is_static(noise_std) and not getattr(noise_std, "shape", ()):
        check_weight("noise_std", noise_std)
    noise_std = ops.convert_to_tensor(noise_std, dtype="float32")
    shapes = tuple(noise_std.shape), tuple(router_logits.shape)
    if shapes[0] and not is_same_shape(*shapes):
        raise ValueError(
            "`noise_std` must be a number, or have the shape of the logits. "
            f"Received: noise_std of shape {shapes[0]}, logits of shape "
            f"{shapes[1]}. Pass one standard deviation per logit."
        )
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
    return importance_loss(probs, token_mask, available, over_replicas)


def _mean_over_experts(values: Tensor, available: Tensor | None) -> Tensor:
    """Return the mean of `(E,)` over the experts that are on."""
    if available is None:
        return ops.mean(values)
    only = ops.where(available, values, ops.zeros_like(values))
    return ops.sum(only) / count_available(available, values.shape[0])
