"""A loss that keeps router logits small.

T tokens, E experts. Padding tokens and experts that are off are excluded, as in
`balance.py`.
"""

from keras_moe.checks import check_bool
from keras_moe.kernels import light_ops as ops
from keras_moe.losses.sums import mean_over_tokens
from keras_moe.types import UNAVAILABLE, Tensor


def router_z_loss(
    router_logits: Tensor,
    token_mask: Tensor | None = None,
    available: Tensor | None = None,
    over_replicas: bool = False,
) -> Tensor:
    """Return the router z-loss of ST-MoE.

    It is the mean over tokens of `log(sum_e exp(logits_e)) ** 2`. It keeps
    logits small, so that rounding errors matter less. The weight in the paper
    is 1e-3.

    Reference: Zoph et al. 2022, "ST-MoE", eq. 5.

    Args:
        router_logits: float32 `(T, E)`. In an `Assignment`, the logits of
            experts that are off are so low that they add nothing to the sum.
        token_mask: bool `(T,)`. False for padding. `None` (the default) if no
            token is padding.
        available: bool `(E,)`. False for experts that are off. Logits of an
            `Assignment` do not need it. `None` (the default) if all are on.
        over_replicas: bool. Whether the mean is over the tokens of all
            replicas; then every replica must make the call. The gradient
            averaged over the replicas is that of one large batch. Defaults to
            `False`.

    Example:

    ```python
    logits = ops.zeros((6, 4))
    loss = keras_moe.losses.router_z_loss(logits)  # log(4) ** 2
    ```
    """
    check_bool("over_replicas", over_replicas)
    if available is not None:
        router_logits = ops.convert_to_tensor(router_logits)
        router_logits = ops.where(available, router_logits, UNAVAILABLE)
    log_z = ops.logsumexp(router_logits, axis=-1, keepdims=True)
    squares = ops.square(log_z)
    return ops.sum(mean_over_tokens(squares, token_mask, over_replicas))
