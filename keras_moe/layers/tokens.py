"""A batch as a list of units that are routed: tokens, or whole examples.

B examples, T tokens, D hidden_dim, U units (T or B), W their width.
"""

from typing import Any, NamedTuple

from keras import ops

from keras_moe import checks
from keras_moe.checks import expert_checks, router_checks
from keras_moe.types import Tensor

LEVELS = ("token", "example")


class Units(NamedTuple):
    """Holds a batch as a list of units that are routed.

    rows: `(U, W)`: tokens `(T, D)`, or examples with all their tokens.
    mask: bool `(U,)`, False for padding; or None.
    features: `(..., D)`, the inputs of the router: the inputs of the block, or
        the mean token of each example.
    features_mask: bool mask of the features, or None.
    row_shape: shape of a row for an expert: `(D,)`, or `(..., D)`.
    row_mask: bool `(U, ...)`, False for padding in a row; or None.
    token_mask: bool `(T,)`, False for padding; or None.
    """

    rows: Tensor
    mask: Tensor | None
    features: Tensor
    features_mask: Tensor | None
    row_shape: tuple[Any, ...]
    row_mask: Tensor | None
    token_mask: Tensor | None

    def for_experts(self, rows: Tensor) -> Tensor:
        """Return rows `(P, W)` in the shape that experts expect."""
        if len(self.row_shape) == 1:
            return rows
        return ops.reshape(rows, (-1, *self.row_shape))

    def mask_of_rows(self, unit_index: Tensor, order: Tensor) -> Tensor | None:
        """Return the mask of each dispatched row, bool `(P, ...)`, or None.

        Args:
            unit_index: Int32 tensor of shape `(P,)`, the unit of each pair.
            order: Int32 tensor of shape `(P,)`, the pair at each sorted place.
        """
        if self.row_mask is None:
            return None
        return ops.take(self.row_mask, ops.take(unit_index, order), axis=0)

    def as_rows(self, outputs: Tensor) -> Tensor:
        """Return the outputs of experts as `(P, W)`."""
        if len(self.row_shape) == 1:
            return outputs
        if not checks.is_same_shape(tuple(outputs.shape[1:]), self.row_shape):
            raise expert_checks.changed_shape(
                self.row_shape, tuple(outputs.shape[1:])
            )
        return ops.reshape(outputs, (ops.shape(outputs)[0], -1))

    def as_tokens(self, rows: Tensor) -> Tensor:
        """Return rows `(U, W)` as tokens `(T, D)`, zero for padding."""
        if len(self.row_shape) == 1:
            return rows
        tokens = ops.reshape(rows, (-1, self.row_shape[-1]))
        return zero_padding(tokens, self.token_mask)


def units_of(
    level: str, inputs: Tensor, mask: Tensor | None, hidden_dim: int
) -> Units:
    """Return inputs `(..., D)` as the units of a level.

    Args:
        level: `"token"` or `"example"`.
        inputs: Float tensor of shape `(..., D)`.
        mask: Bool tensor of shape `(...)`, False for padding, or None.
        hidden_dim: Int, D.

    Raises:
        ValueError: If the inputs have integers or another width, or if the
            mask does not fit them.
    """
    tokens, token_mask = flatten_tokens(inputs, mask, hidden_dim)
    if level == "token" or len(inputs.shape) == 2:
        return Units(
            tokens, token_mask, inputs, mask, (hidden_dim,), None, token_mask
        )
    num_examples, *row_shape = ops.shape(inputs)
    grouped = ops.reshape(tokens, (num_examples, -1, hidden_dim))
    row_mask = grouped_mask = None
    if token_mask is not None:
        grouped_mask = ops.reshape(token_mask, (num_examples, -1))
        row_mask = ops.reshape(token_mask, ops.shape(inputs)[:-1])
    features, example_mask = mean_token(grouped, grouped_mask)
    return Units(
        ops.reshape(tokens, (num_examples, -1)),
        example_mask,
        features,
        example_mask,
        tuple(row_shape),
        row_mask,
        token_mask,
    )


def mean_token(
    inputs: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the mean of each example's tokens, without padding.

    Args:
        inputs: Float tensor of shape `(B, T, D)`, zero for padding.
        mask: Bool tensor of shape `(B, T)`, or None.

    Returns:
        Float32 `(B, D)`, and a bool `(B,)` that is True for examples with
        tokens, or None.
    """
    inputs = ops.cast(inputs, "float32")
    if mask is None:
        return ops.mean(inputs, axis=1), None
    count = ops.sum(ops.cast(mask, "float32"), axis=1, keepdims=True)
    mean = ops.sum(inputs, axis=1) / ops.maximum(count, 1.0)
    return mean, ops.any(mask, axis=1)


def check_level(level: str, load_balancing: str, num_null_experts: int) -> str:
    """Return `level` if the other arguments allow it.

    Raises:
        ValueError: If `level` is not in LEVELS, or if whole examples are
            routed with `load_balancing="per_sequence"` or null experts.
    """
    checks.check_choice("level", level, LEVELS)
    if level == "token":
        return level
    if load_balancing == "per_sequence":
        raise ValueError(
            "`load_balancing` must not be 'per_sequence' if whole examples are "
            "routed: a sequence has only one choice then. Received: "
            f"level={level!r}, load_balancing={load_balancing!r}. Use 'switch'."
        )
    if num_null_experts:
        raise ValueError(
            "`level` must be 'token' if the router has null experts: they "
            f"compute single tokens. Received: level={level!r}, "
            f"num_null_experts={num_null_experts}. Put keras.layers.Identity() "
            "into `experts`."
        )
    return level


def flatten_tokens(
    inputs: Tensor, mask: Tensor | None, hidden_dim: int
) -> tuple[Tensor, Tensor | None]:
    """Return inputs `(..., D)` as `(T, D)` and their mask as bool `(T,)`.

    Padding becomes zero: NaN in padding would reach the gradient of every
    weight that is multiplied with it, even if the result is masked later.

    Raises:
        ValueError: If the inputs have integers or another width, or if the
            mask does not fit them.
    """
    checks.check_floating(inputs)
    checks.check_built_width(inputs, hidden_dim)
    tokens = inputs
    if len(inputs.shape) > 2:
        tokens = ops.reshape(inputs, (-1, hidden_dim))
    token_mask = flatten_mask(mask, inputs)
    return zero_padding(tokens, token_mask), token_mask


def flatten_mask(mask: Tensor | None, inputs: Tensor) -> Tensor | None:
    """Return the mask `(...)` of inputs `(..., D)` as bool `(T,)`, or None.

    Raises:
        ValueError: If the mask does not fit the inputs.
    """
    if mask is None:
        return None
    mask = ops.convert_to_tensor(mask)
    checks.check_mask_shape(mask, inputs)
    return ops.cast(ops.reshape(mask, (-1,)), "bool")


def zero_padding(tokens: Tensor, token_mask: Tensor | None) -> Tensor:
    """Return tokens `(T, D)`, zero if their mask `(T,)` is False."""
    if token_mask is None:
        return tokens
    valid = ops.expand_dims(token_mask, -1)
    return ops.where(valid, tokens, ops.zeros_like(tokens))


def flatten_logits(
    logits: Tensor, inputs: Tensor, columns: int, token_mask: Tensor | None
) -> Tensor:
    """Return the logits of another router as float32 `(T, columns)`.

    Args:
        logits: Float tensor of shape `(T, columns)`, or of the shape of
            `inputs` with `columns` in place of D.
        inputs: Tensor of shape `(..., D)`.
        columns: Int. Width of the logits.
        token_mask: Bool tensor of shape `(T,)`; the logits of padding become
            zero. None if there is no padding.

    Raises:
        ValueError: If the logits are integers or do not fit.
    """
    logits = ops.convert_to_tensor(logits)
    router_checks.check_previous_logits(logits, inputs, columns)
    if len(logits.shape) > 2:
        logits = ops.reshape(logits, (-1, columns))
    return zero_padding(ops.cast(logits, "float32"), token_mask)


def flatten_ids(ids: Tensor, inputs: Tensor) -> Tensor:
    """Return ids of tokens, or of whole sequences, as int32 `(T,)`.

    Args:
        ids: Int tensor of the shape of `inputs` without its last axis, or of
            its first axes only: an id then holds for all tokens of the entry.
        inputs: Tensor of shape `(..., D)`.

    Raises:
        ValueError: If the ids are not integers or do not fit.
    """
    ids = ops.convert_to_tensor(ids)
    router_checks.check_router_inputs(ids, inputs)
    leading = ops.shape(inputs)[:-1]
    for _ in range(len(leading) - len(ids.shape)):
        ids = ops.expand_dims(ids, -1)
    ids = ops.broadcast_to(ops.cast(ids, "int32"), leading)
    return ops.reshape(ids, (-1,))
