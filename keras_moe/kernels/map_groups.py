"""Runs a function of its own on each group's rows, whatever they compute.

P rows sorted by group, E groups. `grouped_ffn` is for groups that differ in
their weights alone; this is for whole layers and models, which may have
nothing in common. A group without rows is not run. How depends on what the
backend must know about shapes when it traces, see `shapes_known`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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

Nest = Any  # a tensor, or lists, tuples and dicts of them
GroupFunction = Callable[[Nest, Nest, Tensor | None], tuple[Nest, Nest]]


def map_groups(
    functions: Sequence[GroupFunction],
    rows: Nest,
    group_sizes: Tensor,
    states: Sequence[Nest],
    outputs_spec: Nest,
    weights: Sequence[Sequence[Tensor]],
    most_rows: int | None = None,
) -> tuple[Nest, list[Nest]]:
    """Returns each row's output under its group's function, and the states.

    Args:
        functions: E functions `f(rows, state, real)` of `(n, ...)` rows,
            which return `(outputs, state)`, outputs `(n, ...)`. They touch no
            variable but through `state`. `real` is bool `(n,)`, False for
            rows that are there for their number alone, or None.
        rows: nest of `(P, ...)`, sorted by group.
        group_sizes: int32 `(E,)`, rows of each group; the sum is at most P.
        states: E nests of tensors; that of a group without rows comes back
            as it was.
        outputs_spec: nest of `keras.KerasTensor` `(None, ...)`, what every
            function returns.
        weights: E lists of tensors that a function reads; their gradient is
            zero, and not missing, where it did not run.
        most_rows: rows that no group has more of, if that is known. Programs
            of static shapes run a group on this many rows; otherwise on the
            least of three sizes, the last of which is P.

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
    """The arguments of `map_groups` that stand for one group each."""

    functions: Sequence[GroupFunction]
    states: Sequence[Nest]
    weights: Sequence[Sequence[Tensor]]
    sizes: Tensor
    num_rows: int | Tensor

    def each(self):
        """Yields each group's function, state, weights and size."""
        for e, function in enumerate(self.functions):
            yield function, self.states[e], self.weights[e], self.sizes[e]


def _exact(groups, rows, spec):
    """Slices of exactly the rows of each group."""
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

    def join(*leaves):
        shape = (groups.num_rows - start, *ops.shape(leaves[0])[1:])
        rest = ops.zeros(shape, dtype=leaves[0].dtype)
        return ops.concatenate([*leaves, rest], axis=0)

    return tree.map_structure(join, *parts), new_states


def _run_unless_empty(group, rows, spec):
    """One group; where its outputs' shape is unknown, on a row at least."""
    function, state, weights, size = group
    empty = _empty_outputs(rows, spec)
    if empty is not None:
        return ops.cond(
            size > 0,
            lambda: function(rows, state, None),
            lambda: (_leading_to(weights, empty), state),
        )
    longer = tree.map_structure(_with_one_row, rows)
    real = ops.arange(ops.shape(tree.flatten(longer)[0])[0]) < size
    outputs, new_state = function(longer, state, real)
    outputs = _between(outputs, 0, size)
    return outputs, _where(size > 0, new_state, state)


def _leading_to(weights, outputs):
    """Outputs plus sums of nothing: a program that takes steps one by one has
    not seen the other branch, and would give the weights no gradient."""
    nothing = [ops.sum(ops.reshape(w, (-1,))[:0]) for w in weights]

    def add(x):
        return sum((ops.cast(n, x.dtype) for n in nothing), x)

    return tree.map_structure(add, outputs)


def _with_one_row(x):
    more = ops.zeros((1, *ops.shape(x)[1:]), dtype=x.dtype)
    return ops.concatenate([x, more], axis=0)


def _empty_outputs(rows, spec):
    """Outputs of no rows; None where their shape cannot be told."""
    like = tree.flatten(rows)[0]

    def empty(output):
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


def _take(rows, index):
    return tree.map_structure(lambda x: take_rows(x, index), rows)


def _between(rows, start, stop):
    return tree.map_structure(lambda x: x[start:stop], rows)


def _sizes(num_rows, num_groups, most_rows):
    """The row counts a group is compiled for, rising."""
    if most_rows is not None:
        fitting = smaller_size(most_rows, num_rows)
        return [max(1, fitting) if isinstance(fitting, int) else fitting]
    if not isinstance(num_rows, int):
        return _symbolic_sizes(num_rows, num_groups)
    even = num_rows / num_groups
    smaller = {math.ceil(1.25 * even), math.ceil(2.5 * even)}
    return [*sorted(n for n in smaller if n <= 0.75 * num_rows), num_rows]


def _symbolic_sizes(num_rows, num_groups):
    """1.25 and 2.5 even shares, rounded up, where these are less than P."""
    quarters = [n for n in (5, 10) if n <= 3 * num_groups]
    parts = 4 * num_groups
    return [*((n * num_rows + parts - 1) // parts for n in quarters), num_rows]


def _padded(groups, rows, spec, sizes):
    """Static shapes: each group on the least of the sizes that holds it.

    What is missing to that size are copies of the group's last row, so that
    a function sees nothing foreign to it; the next group's outputs are
    written over theirs.
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


def _shaped(groups, rows, spec):
    """The spec, or what has symbolic dimensions where the spec has None."""
    if all(None not in s.shape[1:] for s in tree.flatten(spec)):
        return spec
    return output_shapes(groups.functions[0], rows, groups.states[0], None)[0]


def _skip(buffers, state):
    return buffers, state


def _branch(function, rows, place, padded_size, remat):
    """Runs a group padded to a size and writes its outputs.

    With `remat` they are computed again for the gradient: a program keeps
    room for all that each branch would keep, whether it is taken or not.
    """
    start, size = place

    def compute(rows, state):
        row = ops.arange(padded_size, dtype="int32")
        own = start + ops.minimum(row, size - 1)
        return function(_take(rows, own), state, row < size)

    def run(buffers, state):
        outputs, state = (keras.remat(compute) if remat else compute)(
            rows, state
        )

        def write(buffer, x):
            # Of one dtype, also where 64 bits are enabled on JAX.
            rest = [ops.zeros_like(start)] * (len(buffer.shape) - 1)
            origin = [start, *rest]
            return ops.slice_update(buffer, origin, ops.cast(x, buffer.dtype))

        buffers = tree.map_structure(write, buffers, outputs)
        # A function may write a constant.
        return varying_alike((buffers, state), rows, size)

    return run


def _whole(groups, rows):
    """Every function on P rows, its own and copies of its last in place of
    the others, where no shape may depend on values."""
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


def _where(condition, new, old):
    return tree.map_structure(lambda a, b: ops.where(condition, a, b), new, old)


def _only(condition, x):
    """Zeroes the rows of `(P, ...)` where the condition `(P,)` is False."""
    shape = (-1,) + (1,) * (len(x.shape) - 1)
    return ops.where(ops.reshape(condition, shape), x, ops.zeros_like(x))
