"""Run functions on groups of rows in programs with static shapes.

P rows sorted by group, E groups. Each group is padded to one of a few sizes,
and a program branches between the sizes.
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops, tree

from keras_moe.kernels.group_functions import (
    GroupFunction,
    Groups,
    Nest,
    only_where,
    take_nest,
)
from keras_moe.kernels.row_ops import (
    output_shapes,
    smaller_size,
    varying_alike,
)
from keras_moe.types import Tensor


def run_padded(
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
        lambda x: only_where(computed, x[: groups.num_rows]), buffers
    )
    return outputs, new_states


def padded_sizes(num_rows: Any, num_groups: int, most_rows: Any) -> list[Any]:
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
        return function(take_nest(rows, own), state, row < size)

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
