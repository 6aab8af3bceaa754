"""Run a different function on the rows of each group.

P rows sorted by group, E groups. `grouped_ffn` is for groups that differ only
in their weights; `map_groups` is for whole layers and models, which may have
nothing in common. A function whose group has no rows does not run, except in
a program that keeps no branches. How the functions run depends on what must be
known about shapes during a trace: see `shapes_known`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias

import keras
from keras import ops, tree

from keras_moe.kernels.row_ops import (
    output_shapes,
    shapes_known,
    smaller_size,
    take_rows,
    varying_alike,
)
from keras_moe.types import Tensor

Nest: TypeAlias = Any
"""A tensor, or nested lists, tuples, and dicts of tensors."""

GroupFunction: TypeAlias = Callable[
    [Nest, Nest, Tensor | None], tuple[Nest, Nest]
]
"""`f(rows, state, real)`, which returns outputs and the new state."""

_Group: TypeAlias = tuple[GroupFunction, Nest, Sequence[Tensor], Tensor]


def map_groups(
    functions: Sequence[GroupFunction],
    rows: Nest,
    group_sizes: Tensor,
    states: Sequence[Nest],
    outputs_spec: Nest,
    weights: Sequence[Sequence[Tensor]],
    most_rows: int | None = None,
) -> tuple[Nest, list[Nest]]:
    """Return each row's output under its group's function, and the states.

    Args:
        functions: E functions `f(rows, state, real)` of `(n, ...)` rows. Each
            returns `(outputs, state)` with outputs `(n, ...)`, and reads and
            writes variables only through `state`. `real` is bool `(n,)`,
            False for rows that are padding; None if all rows are real.
        rows: Nest of `(P, ...)`, sorted by group.
        group_sizes: int32 `(E,)`. The number of rows per group; their sum is
            at most P.
        states: E nests of tensors. The state of a group without rows is
            returned unchanged.
        outputs_spec: Nest of `keras.KerasTensor` `(None, ...)`. The outputs of
            every function.
        weights: E lists with the tensors that each function reads. Their
            gradient is zero, rather than missing, if the function did not run.
        most_rows: int. An upper bound of the rows per group. Programs of
            static shapes run every group on this many rows. With `None` (the
            default) they run it on the smallest of up to three sizes that
            holds it, of which the last is P.

    Returns:
        A nest like `outputs_spec` of `(P, ...)`, zero behind the last group,
        and the E states.
    """
    group_sizes = ops.cast(group_sizes, "int32")
    num_rows = ops.shape(tree.flatten(rows)[0])[0]
    groups = Groups(functions, states, weights, group_sizes, num_rows)
    known = shapes_known(group_sizes)
    if known == "sizes":
        sizes = _sizes(num_rows, len(functions), most_rows)
        return _padded(groups, rows, outputs_spec, sizes)
    if known == "whole":
        return _whole(groups, rows)
    return _exact(groups, rows, outputs_spec)


class Groups(NamedTuple):
    """The arguments of `map_groups` with one entry per group, and P."""

    functions: Sequence[GroupFunction]
    states: Sequence[Nest]
    weights: Sequence[Sequence[Tensor]]
    sizes: Tensor
    num_rows: int | Tensor

    def each(self) -> Iterator[_Group]:
        """Yield each group's function, state, weights, and size."""
        for e, function in enumerate(self.functions):
            yield function, self.states[e], self.weights[e], self.sizes[e]


def _exact(groups: Groups, rows: Nest, spec: Nest) -> tuple[Nest, list[Nest]]:
    """Run each function on a slice of exactly its group's rows."""
    parts, new_states = [], []
    start = 0
    for group in groups.each():
        stop = start + group[-1]
        outputs, state = _run_unless_empty(
            group, _between(rows, start, stop), spec
        )
        parts.append(outputs)
        new_states.append(state)
        start = stop

    def join(*leaves: Tensor) -> Tensor:
        shape = (groups.num_rows - start, *ops.shape(leaves[0])[1:])
        rest = ops.zeros(shape, dtype=leaves[0].dtype)
        return ops.concatenate([*leaves, rest], axis=0)

    return tree.map_structure(join, *parts), new_states


def _run_unless_empty(
    group: _Group, rows: Nest, spec: Nest
) -> tuple[Nest, Nest]:
    """Run one group, unless it is empty.

    If the shape of its outputs is unknown, an empty group runs on one row.
    """
    function, state, weights, size = group
    empty = _empty_outputs(rows, spec)
    if empty is not None:
        found: tuple[Nest, Nest] = ops.cond(
            size > 0,
            lambda: function(rows, state, None),
            lambda: (_leading_to(weights, empty), state),
        )
        return found
    longer: Nest = tree.map_structure(_with_one_row, rows)
    real = ops.arange(ops.shape(tree.flatten(longer)[0])[0]) < size
    outputs, new_state = function(longer, state, real)
    outputs = _between(outputs, 0, size)
    return outputs, _where(size > 0, new_state, state)


def _leading_to(weights: Sequence[Tensor], outputs: Nest) -> Nest:
    """Return outputs that depend on the weights, by sums over no elements.

    A program that runs operation by operation has not recorded the other
    branch, and would give the weights no gradient.
    """
    nothing = [ops.sum(ops.reshape(w, (-1,))[:0]) for w in weights]

    def add(x: Tensor) -> Tensor:
        return sum((ops.cast(n, x.dtype) for n in nothing), x)

    return tree.map_structure(add, outputs)


def _with_one_row(x: Tensor) -> Tensor:
    more = ops.zeros((1, *ops.shape(x)[1:]), dtype=x.dtype)
    return ops.concatenate([x, more], axis=0)


def _empty_outputs(rows: Nest, spec: Nest) -> Nest:
    """Return outputs of no rows; None if their shape is unknown."""
    like = tree.flatten(rows)[0]

    def empty(output: keras.KerasTensor) -> Tensor | None:
        shape = tuple(output.shape[1:])
        if shape == tuple(like.shape[1:]):
            return ops.zeros((0, *ops.shape(like)[1:]), dtype=output.dtype)
        if None in shape:
            return None
        return ops.zeros((0, *shape), dtype=output.dtype)

    leaves = [empty(output) for output in tree.flatten(spec)]
    if any(leaf is None for leaf in leaves):
        return None
    return tree.pack_sequence_as(spec, leaves)


def _take(rows: Nest, index: Tensor) -> Nest:
    return tree.map_structure(lambda x: take_rows(x, index), rows)


def _between(rows: Nest, start: Any, stop: Any) -> Nest:
    return tree.map_structure(lambda x: x[start:stop], rows)


def _sizes(num_rows: Any, num_groups: int, most_rows: Any) -> list[Any]:
    """Return the numbers of rows to compile a group for, in ascending order."""
    if most_rows is not None:
        fitting = smaller_size(most_rows, num_rows)
        return [max(1, fitting) if isinstance(fitting, int) else fitting]
    if not isinstance(num_rows, int):
        return _symbolic_sizes(num_rows, num_groups)
    even = num_rows / num_groups
    smaller = {math.ceil(1.25 * even), math.ceil(2.5 * even)}
    return [*sorted(n for n in smaller if n <= 0.75 * num_rows), num_rows]


def _symbolic_sizes(num_rows: Any, num_groups: int) -> list[Any]:
    """Return 1.25 and 2.5 even shares, rounded up, if less than P; and P."""
    quarters = [n for n in (5, 10) if n <= 3 * num_groups]
    parts = 4 * num_groups
    return [*((n * num_rows + parts - 1) // parts for n in quarters), num_rows]


def _padded(
    groups: Groups, rows: Nest, spec: Nest, sizes: list[Any]
) -> tuple[Nest, list[Nest]]:
    """Run each group on the smallest of the static sizes that holds it.

    The remainder is padded with copies of the group's last row, so that a
    function gets no other group's rows. The outputs of the padding are
    overwritten by those of the next group.
    """
    buffers = tree.map_structure(
        lambda s, like: ops.zeros(
            (groups.num_rows + sizes[-1], *like.shape[1:]), s.dtype
        ),
        spec,
        _shaped(groups, rows, spec),
    )
    buffers, states = varying_alike(
        (buffers, groups.states), rows, groups.sizes, groups.weights
    )
    groups = groups._replace(states=states)
    bounds = ops.convert_to_tensor([0, *sizes[:-1]], dtype="int32")
    start = ops.zeros((), dtype="int32")
    new_states = []
    for function, state, _, group_size in groups.each():
        place = start, group_size
        branches = [
            _branch(function, rows, place, size, remat=number > 0)
            for number, size in enumerate(sizes)
        ]
        index = ops.sum(ops.cast(group_size > bounds, "int32"))
        buffers, state = ops.switch(index, [_skip, *branches], buffers, state)
        new_states.append(state)
        start = start + group_size
    computed = ops.arange(groups.num_rows, dtype="int32") < start
    outputs = tree.map_structure(
        lambda x: _only(computed, x[: groups.num_rows]), buffers
    )
    return outputs, new_states


def _shaped(groups: Groups, rows: Nest, spec: Nest) -> Nest:
    """Return the spec, with symbolic dimensions instead of None."""
    if all(None not in s.shape[1:] for s in tree.flatten(spec)):
        return spec
    return output_shapes(groups.functions[0], rows, groups.states[0], None)[0]


def _skip(buffers: Nest, state: Nest) -> tuple[Nest, Nest]:
    return buffers, state


def _branch(
    function: GroupFunction,
    rows: Nest,
    place: tuple[Tensor, Tensor],
    padded_size: Any,
    remat: bool,
) -> Callable[[Nest, Nest], tuple[Nest, Nest]]:
    """Return a function that runs a padded group and writes its outputs.

    With `remat` the outputs are computed again for the gradient: a program
    reserves memory for what each branch keeps, whether it is taken or not.
    """
    start, size = place

    def compute(rows: Nest, state: Nest) -> tuple[Nest, Nest]:
        row = ops.arange(padded_size, dtype="int32")
        own = start + ops.minimum(row, size - 1)
        return function(_take(rows, own), state, row < size)

    computed = keras.remat(compute) if remat else compute

    def run(buffers: Nest, state: Nest) -> tuple[Nest, Nest]:
        outputs, state = computed(rows, state)

        def write(buffer: Tensor, x: Tensor) -> Tensor:
            # All of one dtype, also if 64 bits are enabled on JAX.
            rest = [ops.zeros_like(start)] * (len(buffer.shape) - 1)
            origin = [start, *rest]
            return ops.slice_update(buffer, origin, ops.cast(x, buffer.dtype))

        buffers = tree.map_structure(write, buffers, outputs)
        # A function may return constants.
        found: tuple[Nest, Nest] = varying_alike((buffers, state), rows, size)
        return found

    return run


def _whole(groups: Groups, rows: Nest) -> tuple[Nest, list[Nest]]:
    """Run every function on P rows, for programs without dynamic shapes.

    Copies of the group's first and last row stand in for other groups' rows.
    The outputs and the state of an empty group are ignored.
    """
    row = ops.arange(groups.num_rows, dtype="int32")
    start = ops.zeros((), dtype="int32")
    parts, new_states = [], []
    for function, state, _, size in groups.each():
        stop = start + size
        own = ops.maximum(start, ops.minimum(row, stop - 1))
        own = ops.minimum(own, groups.num_rows - 1)
        mine = ops.logical_and(row >= start, row < stop)
        outputs, new = function(_take(rows, own), state, mine)
        parts.append(tree.map_structure(lambda x, m=mine: _only(m, x), outputs))
        new_states.append(_where(size > 0, new, state))
        start = stop
    return tree.map_structure(lambda *leaves: sum(leaves), *parts), new_states


def _where(condition: Tensor, new: Nest, old: Nest) -> Nest:
    return tree.map_structure(lambda a, b: ops.where(condition, a, b), new, old)


def _only(condition: Tensor, x: Tensor) -> Tensor:
    """Zero the rows of `(P, ...)` whose condition `(P,)` is False."""
    shape = (-1,) + (1,) * (len(x.shape) - 1)
    return ops.where(ops.reshape(condition, shape), x, ops.zeros_like(x))
