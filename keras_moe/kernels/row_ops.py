"""Counting, ranking, gathering, turning round; broken rules; gradients;
whole programs.

T tokens, D width, E experts, K top_k, P routed pairs. Only `take_columns` and
`linear_map` have a gradient.
Where keras.ops cannot do it, or is slow, a function of the same name stands
in `jax_primitives.py`, `tensorflow_primitives.py` or `torch_primitives.py`.
"""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_moe.kernels.choice import context, is_reference
from keras_moe.types import UNAVAILABLE, Tensor

TWINS = ("jax", "tensorflow", "torch")


def top_k_index(scores: Tensor, top_k: int) -> Tensor:
    """Returns the columns of each row's K largest scores, the best first.

    Of equal scores the lower column comes first, on every backend. NaN is
    read as zero, since a sort that meets one may do anything; and so is -0.0,
    which some sorts put below 0.0.

    Args:
        scores: float32 `(T, E)`.
        top_k: K.

    Returns:
        int32 `(T, K)`.
    """
    scores = light_ops.stop_gradient(light_ops.convert_to_tensor(scores))
    if own := twin("top_k_index"):
        return own(scores, top_k)
    ordered = ops.abs(scores) > 0
    scores = ops.where(ordered, scores, ops.zeros_like(scores))
    return ops.cast(ops.top_k(scores, top_k)[1], "int32")


def take_columns(table: Tensor, columns: Tensor) -> Tensor:
    """Returns each row's entries at its own columns; differentiable.

    Args:
        table: `(T, E)`.
        columns: int `(T, K)`, 0 ... E - 1.

    Returns:
        `(T, K)`, the dtype of `table`.
    """
    own = twin("take_columns")
    if own:
        return own(table, columns)
    return ops.take_along_axis(table, columns, axis=-1)


def take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Returns entries of the first axis.

    Its gradient, if it is asked for, is a slow scatter; inside a `linear_map`
    nobody asks.

    Args:
        table: `(T, ...)`.
        rows: int32 `(P,)`, 0 ... T - 1.

    Returns:
        `(P, ...)`, the dtype of `table`.
    """
    own = twin("take_rows")
    return own(table, rows) if own else ops.take(table, rows, axis=0)


def row_of_each(table: Tensor) -> Tensor:
    """Returns the row that each entry is in, of a table read row by row.

    Args:
        table: `(T, K)`.

    Returns:
        int32 `(T * K,)`: K times 0, K times 1, and so on.
    """
    if own := twin("row_of_each"):
        return own(table)
    num_rows, num_columns = ops.shape(table)
    return ops.arange(num_rows * num_columns, dtype="int32") // num_columns


def linear_map(
    forward: Callable, transpose: Callable, x: Tensor, *index: Tensor
) -> Tensor:
    """Returns `forward(x, *index)` with a gradient that is given.

    The gradient is `transpose(dy, *index)`, whose own gradient is `forward`
    again, and so on. Where `use("reference")` is in effect it is what the
    backend derives from `forward`.

    Args:
        forward: a linear map of `x`. It and `transpose` capture no tensors.
        transpose: the transposed map.
        x: float, any shape.
        *index: tensors of integers that both maps need.
    """
    if is_reference():
        return forward(x, *index)
    if own := twin("linear_map"):
        return own(forward, transpose, x, *index)

    @ops.custom_gradient
    def apply(x):
        def backward(*args, upstream=None):
            dy = args[0] if upstream is None else upstream
            return linear_map(transpose, forward, dy, *index)

        return forward(x, *index), backward

    return apply(x)


def gathered_sum(
    rows: Tensor,
    place: Tensor,
    order: Tensor,
    num_terms: int,
    weights: Tensor | None = None,
) -> Tensor:
    """Sums K rows each, wherever they stand, with weights.

    `y[t] = sum_k weights[t * K + k] * rows[place[t * K + k]]`; differentiable
    in the rows and the weights, with gathers alone.

    Args:
        rows: `(T * K, D)`.
        place: int32 `(T * K,)`, a permutation.
        order: int32 `(T * K,)`, its inverse.
        num_terms: K.
        weights: `(T * K,)`, the dtype of `rows`; None for ones.

    Returns:
        `(T, D)`, the dtype of `rows`.
    """
    own = None if is_reference() else twin("gathered_sum")
    if own and (y := own(rows, place, order, num_terms, weights)) is not None:
        return y
    found = linear_map(_taken_by_first, _taken_by_second, rows, place, order)
    if weights is not None:
        found = found * light_ops.expand_dims(weights, -1)
    if num_terms == 1:
        return found
    shape = (-1, num_terms, light_ops.shape(found)[-1])
    return light_ops.sum(light_ops.reshape(found, shape), axis=1)


def _taken_by_first(rows, place, order):
    return take_rows(rows, place)


def _taken_by_second(rows, place, order):
    return take_rows(rows, order)


def inverse_permutation(order: Tensor) -> Tensor:
    """Returns where each element of a permutation went.

    Args:
        order: int32 `(P,)`, the element at each place.

    Returns:
        int32 `(P,)`, the place of each element.
    """
    order = light_ops.convert_to_tensor(order)
    if own := twin("inverse_permutation"):
        return own(order)
    size = ops.shape(order)[0]
    places = ops.arange(size, dtype="int32")
    return ops.scatter(ops.expand_dims(order, -1), places, (size,))


def group_sizes_of(expert_index: Tensor, num_experts: int) -> Tensor:
    """Counts the pairs of each expert.

    Args:
        expert_index: int32 `(P,)`; pairs with an index of E or above belong
            to no group.
        num_experts: E.

    Returns:
        int32 `(E,)`.
    """
    expert_index = light_ops.convert_to_tensor(expert_index)
    if own := twin("group_sizes_of"):
        return own(expert_index, num_experts)
    experts = ops.arange(num_experts, dtype="int32")
    chosen = ops.equal(ops.reshape(expert_index, (-1, 1)), experts)
    return ops.sum(ops.cast(chosen, "int32"), axis=0)


def num_available(router_logits: Tensor, num_experts: int) -> Tensor:
    """Counts the experts that are on, by the logits of an `Assignment`.

    Args:
        router_logits: float32 `(T, E + N)`, `UNAVAILABLE` in the columns of
            experts that are off.
        num_experts: E, the first columns.

    Returns:
        int32 scalar; E if there are no tokens.
    """
    off = router_logits[:1, :num_experts] <= UNAVAILABLE / 2
    # Of floats, which `light_ops` sums faster.
    num_off = light_ops.sum(light_ops.cast(off, "float32"))
    return num_experts - light_ops.cast(num_off, "int32")


def shape_of_count(count: Tensor, otherwise: int) -> int | Tensor:
    """Returns a count as a number that a shape may depend on.

    Args:
        count: int32 scalar.
        otherwise: what stands in if shapes are fixed before values are known
            (JAX, XLA, an export), or if reading a value would make the host
            wait for the device.
    """
    own = twin("shape_of_count")
    return own(count, otherwise) if own else count


def map_entries(
    function: Callable[[tuple[Tensor, ...]], Tensor], tensors: tuple
) -> Tensor:
    """Applies a function to each entry of the first axis of tensors.

    Args:
        function: from a tuple of entries to one tensor.
        tensors: as many entries each.

    Returns:
        What the function returns, stacked.
    """
    own = twin("map_entries")
    return (
        own(function, tensors) if own else ops.vectorized_map(function, tensors)
    )


def sort_groups(
    group_index: Tensor, num_groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Sorts elements by their group; those of one group keep their order.

    Args:
        group_index: int32 `(P,)`; an index of E or above is of no group, and
            comes last.
        num_groups: E.

    Returns:
        The element at each sorted place, int32 `(P,)`; the place of each
        element, its inverse; and the elements of each group, int32 `(E,)`.
    """
    group_index = light_ops.convert_to_tensor(group_index)
    own = twin("sort_few_groups")
    if own and (found := own(group_index, num_groups)) is not None:
        return found
    order = light_ops.argsort(group_index)
    sizes = group_sizes_of(group_index, num_groups)
    return order, inverse_permutation(order), sizes


def varying_alike(values: Any, *others: Any) -> Any:
    """Return `values` with the type of what a loop or a branch computes.

    Inside a `jax.shard_map` zeros that a program starts from differ in type
    from what it computes of a device's rows. Elsewhere nothing changes.

    Args:
        values: Pytree of tensors, which are returned.
        *others: Pytrees of tensors that the results depend on.
    """
    own = twin("varying_alike")
    return own(values, *others) if own else values


def require(valid: Tensor, message: str) -> Tensor:
    """Raises unless all of `valid` is True; returns it.

    A program that JAX or XLA compiles cannot raise, and on CUDA a look at the
    values would stop the queue: there nothing is checked, and the caller must
    make sure that a wrong value shows.

    Args:
        valid: bool, any shape.
        message: the error's.

    Raises:
        ValueError: on values; tf.errors.InvalidArgumentError in a graph.
    """
    own = twin("require")
    return own(valid, message) if own else valid


def shapes_known(x: Tensor) -> str:
    """Returns what a program that is traced now must know of shapes.

    `"at run time"`: nothing, a slice may be as long as a value says.
    `"sizes"`: all, and it can choose between programs. `"whole"`: all, and
    the sizes of its inputs are not there to choose by.

    Args:
        x: any tensor of the program.
    """
    own = twin("shapes_known")
    return own(x) if own else "at run time"


def smaller_size(one: int | Tensor, other: int | Tensor) -> int | Tensor:
    """Returns the smaller of two sizes.

    Args:
        one, other: numbers; on TensorFlow also scalars of a graph, and on JAX
            symbolic dimensions, which cannot be compared with a number.
    """
    if isinstance(one, int) and isinstance(other, int):
        return min(one, other)
    own = twin("smaller_size")
    return own(one, other) if own else ops.minimum(one, other)


def output_shapes(function: Callable, *args: Any) -> Any:
    """Returns what a function would return, without computing it.

    Args:
        function: of nests of tensors, returns a nest of tensors.
        *args: of the function.

    Returns:
        The nest, with objects that have a `shape` and a `dtype`.

    Raises:
        NotImplementedError: on another backend than JAX.
    """
    own = twin("output_shapes")
    if own is None:
        raise NotImplementedError(
            "`output_shapes` must run on JAX: elsewhere a tensor's shape is "
            f"known at run time. Received: {keras.backend.backend()!r}. Use "
            "`ops.shape`."
        )
    return own(function, *args)


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns a function's value and its gradient with respect to `x`.

    Both are constants to whoever differentiates around it: no gradient flows
    out of them, neither to `x` nor to weights that the function reads.

    Args:
        function: from a tensor like `x` to a scalar. It is called once.
        x: float, any shape.

    Returns:
        The scalar, and a tensor like `x`; zeros where the function does not
        depend on it.

    Raises:
        NotImplementedError: on a backend other than the three.
    """
    own = twin("value_and_gradient")
    if own is None:
        raise NotImplementedError(
            f"{keras.backend.backend()!r} has no gradients here. Use jax, "
            "tensorflow or torch."
        )
    x = ops.stop_gradient(ops.convert_to_tensor(x))
    value, gradient = own(function, x)
    return ops.stop_gradient(value), ops.stop_gradient(gradient)


def compiled(
    function: Callable, variables: Sequence, written: Sequence = ()
) -> Callable:
    """Returns `function` as a program that is compiled once for each shape.

    `jax.jit` with the variables as arguments, so that later values are seen;
    `tf.function`; on PyTorch, and elsewhere, the function itself. Gradients
    do not flow through it. Each formulation that `kernels.use` forces has a
    program of its own. What else the function captured must not change as
    long as the program is used: `Programs` is for functions where it may.

    Args:
        function: of tensors, returns tensors.
        variables: every `keras.Variable` that the function reads.
        written: those among them that it assigns.
    """
    own = twin("compiled")
    if own is None:
        return function
    kept: dict = {}

    def call(*args):
        now = context()
        if now not in kept:
            kept[now] = own(function, variables, written)
        return kept[now](*args)

    return call


def known_int(value: int | Tensor) -> int | None:
    """Returns an integer scalar, or None if its value is not known yet.

    Args:
        value: int, or an integer scalar. A tensor's value is known if it is
            not traced; on CUDA it is not read.
    """
    if isinstance(value, (int, np.integer)):
        return int(value)
    own = twin("known_int")
    return own(value) if own else None


def _own_module():
    """The running backend's twin of this module, or None."""
    backend = keras.backend.backend()
    if backend not in TWINS:
        return None
    return importlib.import_module(f"keras_moe.kernels.{backend}_primitives")


_OWN = _own_module()

# `keras.ops`; on PyTorch without its looks before each operation. For tensors
# of the running backend, in what every call of a block runs.
light_ops: Any = ops
if keras.backend.backend() == "torch":
    light_ops = importlib.import_module("keras_moe.kernels.torch_ops")


def twin(name: str) -> Callable | None:
    """Returns the running backend's own function of this name, or None."""
    return getattr(_OWN, name, None)
