"""The functions of `map_groups`, with their rows and states.

P rows sorted by group, E groups.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

from keras import ops, tree

from keras_moe.kernels.row_ops import take_rows
from keras_moe.types import Tensor

Nest: TypeAlias = Any
"""A tensor, or nested lists, tuples, and dicts of tensors."""


GroupFunction: TypeAlias = Callable[
    [Nest, Nest, Tensor | None], tuple[Nest, Nest]
]
"""`f(rows, state, real)`, which returns outputs and the new state."""


Group: TypeAlias = tuple[GroupFunction, Nest, Sequence[Tensor], Tensor]


class Groups(NamedTuple):
    """The arguments of `map_groups` with one entry per group, and P."""

    functions: Sequence[GroupFunction]
    states: Sequence[Nest]
    weights: Sequence[Sequence[Tensor]]
    sizes: Tensor
    num_rows: int | Tensor

    def each(self) -> Iterator[Group]:
        """Yield each group's function, state, weights, and size."""
        for e, function in enumerate(self.functions):
            yield function, self.states[e], self.weights[e], self.sizes[e]


def take_nest(rows: Nest, index: Tensor) -> Nest:
    return tree.map_structure(lambda x: take_rows(x, index), rows)


def only_where(condition: Tensor, x: Tensor) -> Tensor:
    """Zero the rows of `(P, ...)` whose condition `(P,)` is False."""
    shape = (-1,) + (1,) * (len(x.shape) - 1)
    return ops.where(ops.reshape(condition, shape), x, ops.zeros_like(x))
