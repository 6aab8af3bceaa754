"""Entropies of routing per modality (LIMoE: Mustafa et al. 2022).

T tokens, E experts, M modalities. `token_mask` is bool `(T,)`, False for
padding. Padding is excluded, and so are tokens whose modality is not in
0 ... M - 1. A modality without tokens has the loss zero.
"""

from typing import Any

import numpy as np
from keras import ops

from keras_moe.checks import (
    check_bool,
    check_positive_int,
    check_weight,
    is_static,
)
from keras_moe.kernels import mean_of_units
from keras_moe.types import Tensor


def local_entropy_loss(
    router_probs: Tensor,
    modality: Tensor,
    num_modalities: int,
    token_mask: Tensor | None = None,
    over_replicas: bool = False,
) -> Tensor:
    """Return the mean entropy of each modality's tokens, `(M,)`.

    Minimizing it concentrates the probabilities of each token on few experts.
    It is 0 if every token has a single expert, and `log(E)` if all
    probabilities are equal.

    Reference: Mustafa et al. 2022, "Multimodal Contrastive Learning with
    LIMoE", `Omega_local`.

    Args:
        router_probs: float32 `(T, E)`.
        modality: int `(T,)`. The modality of each token, in 0 ... M - 1.
        num_modalities: int. M.
        token_mask: bool `(T,)`. False for padding. `None` (the default) if no
            token is padding.
        over_replicas: bool. Whether the tokens are those of all replicas
            together; then every replica must make the call. The gradient
            averaged over the replicas is that of one large batch. Defaults to
            `False`.

    Example:

    ```python
    probs = ops.full((4, 2), 0.5)
    modality = np.array([0, 0, 1, 1], "int32")
    loss = keras_moe.losses.local_entropy_loss(probs, modality, 2)
    ```
    """
    check_bool("over_replicas", over_replicas)
    probs = ops.cast(router_probs, "float32")
    entropy = _entropy(probs)
    member, count = _members(modality, num_modalities, token_mask)
    chosen = ops.where(member, ops.expand_dims(entropy, -1), 0.0)
    return mean_of_units(ops.sum(chosen, axis=0), count, over_replicas)


def global_entropy_loss(
    router_probs: Tensor,
    modality: Tensor,
    num_modalities: int,
    token_mask: Tensor | None = None,
    threshold: float | Tensor | None = None,
    over_replicas: bool = False,
) -> Tensor:
    """Return minus the entropy of each modality's mean probabilities, `(M,)`.

    Minimizing it spreads each modality over experts, a rare modality as much as
    a frequent one. A loss over all tokens could be minimized by spreading only
    the frequent modality. With a threshold tau, the loss is
    `max(0, tau - entropy)`, which is zero as soon as about `exp(tau)` experts
    share the modality.

    Reference: Mustafa et al. 2022, "Multimodal Contrastive Learning with
    LIMoE", `Omega_global`.

    Args:
        router_probs: float32 `(T, E)`.
        modality: int `(T,)`. The modality of each token, in 0 ... M - 1.
        num_modalities: int. M.
        token_mask: bool `(T,)`. False for padding. `None` (the default) if no
            token is padding.
        threshold: float or float32 `(M,)`. tau. `None` (the default) for no
            threshold. With `log(E / M)`, every modality may have experts of
            its own.
        over_replicas: bool. As in `local_entropy_loss`.

    Example:

    ```python
    probs = ops.full((4, 2), 0.5)
    modality = np.array([0, 0, 1, 1], "int32")
    loss = keras_moe.losses.global_entropy_loss(probs, modality, 2)
    ```
    """
    check_bool("over_replicas", over_replicas)
    is_array = isinstance(threshold, np.ndarray)
    if threshold is not None and is_static(threshold) and not is_array:
        _check_threshold(threshold, num_modalities)
    probs = ops.cast(router_probs, "float32")
    member, count = _members(modality, num_modalities, token_mask)
    weight = ops.transpose(ops.cast(member, "float32"))
    if token_mask is not None:  # 0 * NaN is NaN
        probs = ops.where(ops.expand_dims(token_mask, -1), probs, 0.0)
    count = ops.expand_dims(count, -1)
    total = ops.concatenate([ops.matmul(weight, probs), count], axis=-1)
    mean = mean_of_units(total, count, over_replicas)
    mean, present = mean[:, :-1], mean[:, -1] > 0
    loss = ops.negative(_entropy(mean))
    if threshold is not None:
        tau = ops.convert_to_tensor(threshold, dtype="float32")
        loss = ops.where(present, ops.relu(loss + tau), 0.0)
    return loss


def _check_threshold(threshold: Any, num_modalities: int) -> None:
    """Raise unless this is one threshold, or one for each modality."""
    if (
        isinstance(threshold, (list, tuple))
        and len(threshold) == num_modalities
    ):
        for one in threshold:
            check_weight("threshold", one)
        return
    check_weight("threshold", threshold)


def _entropy(probs: Tensor) -> Tensor:
    """Return the entropy over the last axis in nats.

    0 log 0 is 0, and so is its gradient.
    """
    logs = ops.log(ops.maximum(probs, 1e-30))
    return ops.negative(ops.sum(probs * logs, axis=-1))


def _members(
    modality: Tensor, num_modalities: int, token_mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return each token's modality as bool `(T, M)`, and the tokens of each.

    The number of tokens per modality is float32 `(M,)`.
    """
    num_modalities = check_positive_int("num_modalities", num_modalities)
    modalities = ops.arange(num_modalities, dtype="int32")
    ids = ops.expand_dims(ops.cast(modality, "int32"), -1)
    member = ops.equal(ids, modalities)
    if token_mask is not None:
        member = ops.logical_and(member, ops.expand_dims(token_mask, -1))
    return member, ops.sum(ops.cast(member, "float32"), axis=0)
