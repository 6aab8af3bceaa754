"""What a block routes: each token by itself, or each example whole.

B examples, T tokens, D hidden_dim, U units (T or B), W their width.
"""

from typing import NamedTuple

from keras import ops

from keras_moe.layers import checks, expert_checks
from keras_moe.layers.routers.tokens import flatten_tokens, zero_padding
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
