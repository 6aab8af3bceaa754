"""Mixtures without a choice: every slot sees every token, a task every expert.

B sequences, S tokens of one, D hidden_dim, H output width, E experts, Z slots
an expert, T = B * S tokens.
"""

from keras import ops

from keras_moe.types import UNAVAILABLE, Tensor


def soft_slot_logits(
    tokens: Tensor, slot_kernel: Tensor, scale: Tensor | None = None
) -> Tensor:
    """Scores every slot for every token (Puigcerver et al. 2023, "From Sparse
    to Soft Mixtures of Experts", eq. 1; normalised, section 2.3).

    Args:
        tokens: float32 `(B, S, D)`.
        slot_kernel: float32 `(D, E * Z)`, a column a slot.
        scale: float32 `(1,)`. With it tokens and columns are divided by their
            length, and the columns multiplied by it: a softmax over wide
            tokens would otherwise be all but a choice. None is the plain
            product.

    Returns:
        float32 `(B, S, E * Z)`.
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
    """Returns what slots are made of, and tokens (same paper, eq. 1 and 3).

    Args:
        slot_logits: float32 `(B, S, E * Z)`.
        token_mask: bool `(B, S)`, False for padding, which is in no slot and
            made of none; or None.

    Returns:
        Dispatch weights, which sum to one over the tokens of a sequence, and
        combine weights, which sum to one over the slots: float32
        `(B, S, E * Z)` both. Zero for padding, and for sequences of padding
        alone.
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
    """Sums all experts' outputs of each token by weight.

    Args:
        outputs: `(T, E, H)`.
        mixture_weights: `(T, E)`.

    Returns:
        `(T, H)`, the dtype of `outputs`.
    """
    outputs = ops.convert_to_tensor(outputs)
    weights = ops.cast(ops.expand_dims(mixture_weights, 1), outputs.dtype)
    return ops.squeeze(ops.matmul(weights, outputs), 1)


def _softmax(logits: Tensor, axis: int) -> Tensor:
    """`ops.softmax`, without its warning where the axis has one entry."""
    return ops.exp(ops.log_softmax(logits, axis=axis))


def _unit_length(x: Tensor, axis: int) -> Tensor:
    """Divides by the Euclidean norm; zeros stay zeros."""
    squares = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, 1e-12))
