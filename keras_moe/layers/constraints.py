"""Constraints that apply to each expert's slice of a stacked weight."""

from typing import Any

import keras
from keras import ops

from keras_moe.types import Tensor


class PerExpertConstraint(keras.constraints.Constraint):
    """Applies a constraint to each slice of `(E, ...)` separately.

    The axes of a Keras constraint count from the first axis of a `Dense`
    kernel. On `(E, D, F)`, `MaxNorm(axis=0)` would limit the norm over the
    experts instead of the norm of each unit's incoming weights.

    Args:
        constraint: A Keras constraint for the weight of one expert.
    """

    def __init__(self, constraint: keras.constraints.Constraint):
        self.constraint = constraint

    def __call__(self, w: Tensor) -> Tensor:
        """Return the stacked weight with each slice constrained."""
        return ops.vectorized_map(self.constraint, ops.convert_to_tensor(w))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this constraint again."""
        return {"constraint": keras.constraints.serialize(self.constraint)}


def per_expert(
    constraint: keras.constraints.Constraint | None,
) -> PerExpertConstraint | None:
    """Return a constraint for a stacked weight, or `None` for `None`."""
    return None if constraint is None else PerExpertConstraint(constraint)
