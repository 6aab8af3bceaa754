"""Run a different function on the rows of each group.

P rows sorted by group, E groups. `grouped_ffn` is for groups that differ only
in their weights; `map_groups` is for whole layers and models, which may have
nothing in common. A function whose group has no rows does not run, except in
a program that keeps no branches. How the functions run depends on what must be
known about shapes during a trace: see `shapes_known`.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops, tree

from keras_moe.kernels.group_functions import (
    Group,
    GroupFunction,
    Groups,
    Nest,
    only_where,
    take_nest,
)
from keras_moe.kernels.padded_groups import padded_sizes, run_padded
from keras_moe.kernels.row_ops import shapes_known
from keras_moe.types import Tensor


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
        sizes = padded_sizes(num_rows, len(functions), most_rows)
        return run_padded(groups, rows, outputs_spec, sizes)
    if known == "whole":
        return _whole(groups, rows)
    return _exact(groups, rows, outputs_spec)


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
    group: Group, rows: Nest, spec: Nest
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


def _between(rows: Nest, start: Any, stop: Any) -> Nest:
    return tree.map_structure(lambda x: x[start:stop], rows)


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
        outputs, new = function(take_nest(rows, own), state, mine)
        parts.append(
            tree.map_structure(lambda x, m=mine: only_where(m, x), outputs)
        )
        new_states.append(_where(size > 0, new, state))
        start = stop
    return tree.map_structure(lambda *leaves: sum(leaves), *parts), new_states


def _where(condition: Tensor, new: Nest, old: Nest) -> Nest:
    return tree.map_structure(lambda a, b: ops.where(condition, a, b), new, old)
