"""Load-balancing loss of sequences.

T tokens, E experts, P routed pairs. Padding tokens and experts that are off are
excluded, as in `balance.py`.
"""

from typing import Any

from keras_moe.checks import check_bool, check_positive_int, is_static
from keras_moe.kernels import light_ops as ops
from keras_moe.kernels import mean_of_units
from keras_moe.losses.sums import count_available
from keras_moe.types import Tensor


def sequence_balancing_loss(
    router_probs: Tensor,
    token_index: Tensor,
    expert_index: Tensor,
    num_sequences: int | Tensor,
    token_mask: Tensor | None = None,
    available: Tensor | None = None,
    over_replicas: bool = False,
) -> Tensor:
    """Return the mean of the load-balancing losses of sequences.

    The loss of a sequence is `E * sum_e f_e * P_e`, with the shares and
    probabilities of its own tokens. Sequences of padding alone are excluded
    from the mean.

    In the paper `f_e` counts the K best scores of a token, without the bias
    and the limit of groups (eq. 18). Here it counts the chosen pairs, which
    differ only with a bias, groups, or null experts. This is the actual load
    of the experts, and the same loss for all routers.

    Reference: DeepSeek-AI 2024, "DeepSeek-V3 Technical Report", eq. 17-20.

    Args:
        router_probs: float32 `(T, E)`, sequence by sequence.
        token_index, expert_index: int32 `(P,)`. The token and the expert of
            each pair. Pairs with an expert index of E or above are not
            counted.
        num_sequences: int or int32 scalar. B, a divisor of T.
        token_mask: bool `(T,)`. False for padding. `None` (the default) if no
            token is padding.
        available: bool `(E,)`. False for experts that are off; then E counts
            the experts that are on. `None` (the default) if all are on.
        over_replicas: bool. Whether the mean is over the sequences of all
            replicas; then every replica must make the call. Defaults to
            `False`.

    Example:

    ```python
    probs = ops.full((4, 2), 0.5)  # two sequences of two tokens
    loss = keras_moe.losses.sequence_balancing_loss(
        probs,
        token_index=np.array([0, 1, 2, 3], "int32"),
        expert_index=np.array([0, 1, 1, 0], "int32"),
        num_sequences=2,
    )  # 1.0
    ```
    """
    check_bool("over_replicas", over_replicas)
    num_tokens, num_experts = ops.shape(router_probs)
    num_sequences = checked_divisor("num_sequences", num_sequences, num_tokens)
    num_on = count_available(available, num_experts)
    return balance_of_sequences(
        router_probs,
        token_index,
        expert_index,
        num_on,
        num_sequences,
        token_mask,
        over_replicas,
    )


def balance_of_sequences(
    router_probs: Tensor,
    token_index: Tensor,
    expert_index: Tensor,
    num_on: Tensor,
    num_sequences: int | Tensor,
    token_mask: Tensor | None,
    over_replicas: bool,
) -> Tensor:
    """Return the `sequence_balancing_loss`; `num_on` is a float."""
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
    return mean_of_units(ops.sum(losses), alive, over_replicas)


def checked_divisor(
    name: str, value: Any, num_tokens: int | Tensor
) -> int | Tensor:
    """Return a number of sequences or their length, checked if it is static.

    A NumPy integer becomes an int, since its dtype may differ from that of
    token numbers.
    """
    if not is_static(value):
        return value
    number = check_positive_int(name, value)
    if isinstance(num_tokens, int) and num_tokens % number:
        raise ValueError(
            f"`{name}` must divide the number of tokens. Received: {name}="
            f"{value!r}, {num_tokens} tokens. Pass sequences of equal length."
        )
    return number
