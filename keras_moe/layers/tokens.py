"""Inputs of any rank as a flat list of tokens.

T tokens, D hidden_dim.
"""

from keras import ops

from keras_moe.layers import checks
from keras_moe.layers.routers import router_checks
from keras_moe.types import Tensor


def flatten_tokens(
    inputs: Tensor, mask: Tensor | None, hidden_dim: int
) -> tuple[Tensor, Tensor | None]:
    """Returns inputs `(..., D)` as `(T, D)` and their mask as bool `(T,)`.

    Padding reads as zeros from here on: NaN there would reach the gradient of
    every weight that multiplies it, whatever is masked later.

    Raises:
        ValueError: where the inputs are integers or of another width, or the
            mask does not fit them.
    """
    checks.check_floating(inputs)
    checks.check_built_width(inputs, hidden_dim)
    tokens = inputs
    if len(inputs.shape) > 2:
        tokens = ops.reshape(inputs, (-1, hidden_dim))
    if mask is None:
        return tokens, None
    mask = ops.convert_to_tensor(mask)
    checks.check_mask_shape(mask, inputs)
    token_mask = ops.cast(ops.reshape(mask, (-1,)), "bool")
    return zero_padding(tokens, token_mask), token_mask


def zero_padding(tokens: Tensor, token_mask: Tensor | None) -> Tensor:
    """Returns tokens `(T, D)` with zeros where the mask `(T,)` is False."""
    if token_mask is None:
        return tokens
    valid = ops.expand_dims(token_mask, -1)
    return ops.where(valid, tokens, ops.zeros_like(tokens))


def flatten_logits(
    logits: Tensor, inputs: Tensor, columns: int, token_mask: Tensor | None
) -> Tensor:
    """Returns logits of another router as float32 `(T, columns)`.

    Args:
        logits: float `(T, columns)`, or of the shape of `inputs` with
            `columns` in place of D.
        inputs: `(..., D)`.
        columns: width of the logits.
        token_mask: bool `(T,)`; padding reads as zeros.

    Raises:
        ValueError: where the logits are integers or do not fit.
    """
    logits = ops.convert_to_tensor(logits)
    router_checks.check_previous_logits(logits, inputs, columns)
    if len(logits.shape) > 2:
        logits = ops.reshape(logits, (-1, columns))
    return zero_padding(ops.cast(logits, "float32"), token_mask)


def flatten_ids(ids: Tensor, inputs: Tensor) -> Tensor:
    """Returns ids of tokens, or of whole sequences, as int32 `(T,)`.

    Args:
        ids: int of the shape of `inputs` without its last axis, or of its
            first axes only: one id for all that is behind them.
        inputs: `(..., D)`.

    Raises:
        ValueError: where the ids are no integers or do not fit.
    """
    ids = ops.convert_to_tensor(ids)
    router_checks.check_router_inputs(ids, inputs)
    leading = ops.shape(inputs)[:-1]
    for _ in range(len(leading) - len(ids.shape)):
        ids = ops.expand_dims(ids, -1)
    ids = ops.broadcast_to(ops.cast(ids, "int32"), leading)
    return ops.reshape(ids, (-1,))
