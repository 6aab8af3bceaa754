"""Soft mixtures: every slot mixes all tokens, and every task all experts.

B sequences, S tokens per sequence, D hidden_dim, H output width, E experts, Z
slots per expert, T = B * S tokens.
"""

from keras import ops

from keras_moe.types import UNAVAILABLE, Tensor


def soft_slot_logits(
    tokens: Tensor, slot_kernel: Tensor, scale: Tensor | None = None
) -> Tensor:
    """Return the score of every slot for every token.

    Reference: Puigcerver et al. 2023, "From Sparse to Soft Mixtures of
    Experts", eq. 1, and section 2.3 for the normalization.

    Args:
        tokens: float32 `(B, S, D)`.
        slot_kernel: float32 `(D, E * Z)`, with one column per slot.
        scale: float32 `(1,)`. If given, tokens and columns are divided by
            their Euclidean norms, and the columns are multiplied by `scale`.
            Without this, a softmax over wide tokens would be close to one-hot.
            `None` (the default) for the plain product.

    Returns:
        float32 `(B, S, E * Z)`.

    Example:

    ```python
    tokens = keras.random.normal((2, 6, 8))
    slot_kernel = keras.random.normal((8, 4))
    logits = keras_moe.routing.soft_slot_logits(tokens, slot_kernel)
    ```
    """
    tokens = ops.convert_to_tensor(tokens)
    slot_kernel = ops.convert_to_tensor(slot_kernel)
    if scale is not None:
        tokens = _unit_length(tokens, axis=-1)
        slot_kernel = ops.multiply(scale, _unit_length(slot_kernel, axis=0))
    return ops.matmul(tokens, slot_kernel)


def soft_weights(
    slot_logits: Tensor, token_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the weights of tokens in slots, and of slots in tokens.

    Reference: Puigcerver et al. 2023, "From Sparse to Soft Mixtures of
    Experts", eq. 1 and 3.

    Args:
        slot_logits: float32 `(B, S, E * Z)`.
        token_mask: bool `(B, S)`. False for padding, which is excluded. `None`
            (the default) if no token is padding.

    Returns:
        Dispatch weights, which sum to one over the tokens of a sequence, and
        combine weights, which sum to one over the slots, both float32
        `(B, S, E * Z)`. They are zero for padding.

    Example:

    ```python
    slot_logits = keras.random.normal((2, 6, 4))
    dispatch, combine = keras_moe.routing.soft_weights(slot_logits)
    ```
    """
    slot_logits = ops.convert_to_tensor(slot_logits)
    combine = _softmax(slot_logits, axis=-1)
    if token_mask is None:
        return _softmax(slot_logits, axis=-2), combine
    valid = ops.expand_dims(token_mask, -1)
    dispatch = _softmax(ops.where(valid, slot_logits, UNAVAILABLE), axis=-2)
    nothing = ops.zeros_like(slot_logits)
    return (
        ops.where(valid, dispatch, nothing),
        ops.where(valid, combine, nothing),
    )


def mix_experts(outputs: Tensor, mixture_weights: Tensor) -> Tensor:
    """Sum the outputs of all experts for each token by weight.

    Args:
        outputs: `(T, E, H)`.
        mixture_weights: `(T, E)`.

    Returns:
        `(T, H)`, in the dtype of `outputs`.

    Example:

    ```python
    outputs = keras.random.normal((6, 4, 8))
    mixed = keras_moe.routing.mix_experts(outputs, ops.full((6, 4), 0.25))
    ```
    """
    outputs = ops.convert_to_tensor(outputs)
    weights = ops.cast(ops.expand_dims(mixture_weights, 1), outputs.dtype)
    return ops.squeeze(ops.matmul(weights, outputs), 1)


def _softmax(logits: Tensor, axis: int) -> Tensor:
    """Return `ops.softmax`, without its warning if the axis has length 1."""
    return ops.exp(ops.log_softmax(logits, axis=axis))


def _unit_length(x: Tensor, axis: int) -> Tensor:
    """Divide by the Euclidean norm; zeros stay zero."""
    squares = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, 1e-12))
