"""A batch as a list of what is routed: tokens, or whole examples.

B examples, T tokens, D hidden_dim, U units (T or B), W their width.
"""

from typing import NamedTuple

from keras import ops

from keras_moe import checks
from keras_moe.checks import expert_checks, router_checks
from keras_moe.types import Tensor

LEVELS = ("token", "example")


class Units(NamedTuple):
    """A batch as a list of what is routed.

    rows: `(U, W)`: tokens `(T, D)`, or examples with all their tokens.
    mask: bool `(U,)`, False for padding; or None.
    features: `(..., D)`, what the router sees: the inputs, or each example's
        mean token.
    features_mask: bool, of the router; or None.
    row_shape: of each row as an expert sees it: `(D,)`, or `(..., D)`.
    row_mask: bool `(U, ...)`, what is padding in a row; or None.
    token_mask: bool `(T,)`, or None.
    """

    rows: Tensor
    mask: Tensor | None
    features: Tensor
    features_mask: Tensor | None
    row_shape: tuple
    row_mask: Tensor | None
    token_mask: Tensor | None

    def for_experts(self, rows: Tensor) -> Tensor:
        """Returns rows `(P, W)` in the shape in which experts see them."""
        if len(self.row_shape) == 1:
            return rows
        return ops.reshape(rows, (-1, *self.row_shape))

    def mask_of_rows(self, unit_index: Tensor, order: Tensor) -> Tensor | None:
        """Returns what is padding in each row `(P, ...)`, or None.

        Args:
            unit_index: int32 `(P,)`, the unit of each pair.
            order: int32 `(P,)`, the pair at each sorted place.
        """
        if self.row_mask is None:
            return None
        return ops.take(self.row_mask, ops.take(unit_index, order), axis=0)

    def as_rows(self, outputs: Tensor) -> Tensor:
        """Returns experts' outputs as `(P, W)`."""
        if len(self.row_shape) == 1:
            return outputs
        if not checks.is_same_shape(tuple(outputs.shape[1:]), self.row_shape):
            raise expert_checks.changed_shape(
                self.row_shape, tuple(outputs.shape[1:])
            )
        return ops.reshape(outputs, (ops.shape(outputs)[0], -1))

    def as_tokens(self, rows: Tensor) -> Tensor:
        """Returns rows `(U, W)` as tokens `(T, D)`, zero where padding."""
        if len(self.row_shape) == 1:
            return rows
        tokens = ops.reshape(rows, (-1, self.row_shape[-1]))
        return zero_padding(tokens, self.token_mask)


def units_of(
    level: str, inputs: Tensor, mask: Tensor | None, hidden_dim: int
) -> Units:
    """Returns inputs `(..., D)` as what a level routes.

    Raises:
        ValueError: where the inputs are integers or of another width, or the
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
    """Returns each example's mean over its tokens that are no padding.

    Args:
        inputs: `(B, T, D)`, zero where there is padding.
        mask: bool `(B, T)`, or None.

    Returns:
        `(B, D)` float32, and whether the example has a token, bool `(B,)` or
        None.
    """
    inputs = ops.cast(inputs, "float32")
    if mask is None:
        return ops.mean(inputs, axis=1), None
    count = ops.sum(ops.cast(mask, "float32"), axis=1, keepdims=True)
    mean = ops.sum(inputs, axis=1) / ops.maximum(count, 1.0)
    return mean, ops.any(mask, axis=1)


def check_level(level: str, load_balancing: str, num_null_experts: int) -> str:
    """Returns `level` where it is one of LEVELS and goes with the rest."""
    checks.check_choice("level", level, LEVELS)
    if level == "token":
        return level
    if load_balancing == "per_sequence":
        raise ValueError(
            "`load_balancing` must not be 'per_sequence' where whole examples "
            "are routed: a sequence has one choice then. Received: "
            f"level={level!r}, load_balancing={load_balancing!r}. Use 'switch'."
        )
    if num_null_experts:
        raise ValueError(
            "`level` must be 'token' where the router has null experts: they "
            f"are made for tokens. Received: level={level!r}, num_null_experts="
            f"{num_null_experts}. Put keras.layers.Identity() into `experts`."
        )
    return level


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
