"""Ranking, counting, sorting, gathering, and summing rows.

T tokens, D width, E experts, K top_k, P routed pairs. Only `take_columns`,
`linear_map`, and `gathered_sum` have a gradient. Each backend has its own
`row_ops.py` for operations that `keras.ops` lacks, or that are slow there.
"""

from collections.abc import Callable

import numpy as np

from keras_moe.kernels.backend import backend
from keras_moe.kernels.forced import is_reference
from keras_moe.types import UNAVAILABLE, Tensor

# The running backend's functions, which `protocol/` describes.
light_ops = backend.light_ops
map_entries = backend.map_entries
output_shapes = backend.output_shapes
require = backend.require
row_of_each = backend.row_of_each
shape_of_count = backend.shape_of_count
shapes_known = backend.shapes_known
take_columns = backend.take_columns
take_rows = backend.take_rows
varying_alike = backend.varying_alike


def top_k_index(scores: Tensor, top_k: int) -> Tensor:
    """Return the columns of each row's K largest scores, the best first.

    Of equal scores the lower column comes first, on every backend. NaN is
    replaced by zero, since a sort that meets one may do anything, and so is
    -0.0, which some sorts put below 0.0.

    Args:
        scores: float32 `(T, E)`.
        top_k: int. K.

    Returns:
        int32 `(T, K)`.
    """
    scores = light_ops.stop_gradient(light_ops.convert_to_tensor(scores))
    return backend.top_k_index(scores, top_k)


def linear_map(
    forward: Callable[..., Tensor],
    transpose: Callable[..., Tensor],
    x: Tensor,
    *index: Tensor,
) -> Tensor:
    """Return `forward(x, *index)` with a given gradient.

    The gradient is `transpose(dy, *index)`, whose own gradient is `forward`
    again, and so on. While `use("reference")` is in effect, the backend
    differentiates `forward` itself.

    Args:
        forward: Linear map of `x`. It and `transpose` must not capture
            tensors.
        transpose: The transposed map.
        x: float, any shape.
        *index: Integer tensors that both maps need.
    """
    if is_reference():
        return forward(x, *index)
    return backend.linear_map(forward, transpose, x, *index)


def gathered_sum(
    rows: Tensor,
    place: Tensor,
    order: Tensor,
    num_terms: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum K gathered rows each, by weight.

    `y[t] = sum_k weights[t * K + k] * rows[place[t * K + k]]`. The gradients
    of the rows and the weights need only gathers.

    Args:
        rows: `(T * K, D)`.
        place: int32 `(T * K,)`, a permutation.
        order: int32 `(T * K,)`, its inverse.
        num_terms: int. K.
        weights: `(T * K,)`, in the dtype of `rows`. `None` (the default) for
            ones.

    Returns:
        `(T, D)`, in the dtype of `rows`.
    """
    if not is_reference():
        y = backend.gathered_sum(rows, place, order, num_terms, weights)
        if y is not None:
            return y
    found = linear_map(_taken_by_first, _taken_by_second, rows, place, order)
    if weights is not None:
        found = found * light_ops.expand_dims(weights, -1)
    if num_terms == 1:
        return found
    shape = (-1, num_terms, light_ops.shape(found)[-1])
    return light_ops.sum(light_ops.reshape(found, shape), axis=1)


def _taken_by_first(rows: Tensor, place: Tensor, order: Tensor) -> Tensor:
    return take_rows(rows, place)


def _taken_by_second(rows: Tensor, place: Tensor, order: Tensor) -> Tensor:
    return take_rows(rows, order)


def inverse_permutation(order: Tensor) -> Tensor:
    """Return the inverse of a permutation.

    Args:
        order: int32 `(P,)`. The element at each place.

    Returns:
        int32 `(P,)`, the place of each element.
    """
    return backend.inverse_permutation(light_ops.convert_to_tensor(order))


def group_sizes_of(expert_index: Tensor, num_experts: int) -> Tensor:
    """Count the pairs per expert.

    Args:
        expert_index: int32 `(P,)`. Pairs with an index of E or above are not
            counted.
        num_experts: int. E.

    Returns:
        int32 `(E,)`.
    """
    expert_index = light_ops.convert_to_tensor(expert_index)
    return backend.group_sizes_of(expert_index, num_experts)


def num_available(router_logits: Tensor, num_experts: int) -> Tensor:
    """Count the experts that are on, by the logits of an `Assignment`.

    Args:
        router_logits: float32 `(T, E + N)`, `UNAVAILABLE` in the columns of
            experts that are off.
        num_experts: int. E; their columns come first.

    Returns:
        int32 scalar; E if there are no tokens.
    """
    off = router_logits[:1, :num_experts] <= UNAVAILABLE / 2
    # As floats, which `light_ops` sums faster.
    num_off = light_ops.sum(light_ops.cast(off, "float32"))
    return num_experts - light_ops.cast(num_off, "int32")


def sort_groups(
    group_index: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sort elements by group; elements of one group keep their order.

    Args:
        group_index: int32 `(P,)`. Elements with an index of E or above belong
            to no group and come last.
        num_groups: int. E.

    Returns:
        The element at each sorted place, int32 `(P,)`; its inverse, the place
        of each element; and the number of elements per group, int32 `(E,)`.
    """
    group_index = light_ops.convert_to_tensor(group_index)
    found = backend.sort_few_groups(group_index, num_groups)
    if found is not None:
        order, place, sizes = found
        return order, place, sizes
    order = light_ops.argsort(group_index)
    sizes = group_sizes_of(group_index, num_groups)
    return order, inverse_permutation(order), sizes


def smaller_size(one: int | Tensor, other: int | Tensor) -> int | Tensor:
    """Return the smaller of two sizes.

    Args:
        one, other: Integers; on TensorFlow also scalars of a graph, and on JAX
            symbolic dimensions, which cannot be compared with a number.
    """
    if isinstance(one, int) and isinstance(other, int):
        return min(one, other)
    return backend.smaller_size(one, other)


def known_int(value: int | Tensor) -> int | None:
    """Return the value of an integer scalar, or None if it is not known yet.

    Args:
        value: int, or an integer scalar tensor. The value of a tensor is
            unknown while it is traced, and is not read on CUDA.
    """
    if isinstance(value, (int, np.integer)):
        return int(value)
    return backend.known_int(value)
