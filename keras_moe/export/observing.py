"""What a model says to a batch, and which experts it asked.

E experts.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

import keras
import numpy as np
from keras import ops, tree

from keras_moe import kernels
from keras_moe.layers.find import find_blocks
from keras_moe.layers.mixture import Mixture


class Observation(NamedTuple):
    """outputs: list of arrays. pairs: from each mixture's path to int
    `(E,)`, the pairs that its experts computed."""

    outputs: list[np.ndarray]
    pairs: dict[str, np.ndarray]


def observer(model: keras.Model) -> Callable[..., Observation]:
    """Returns a function of a batch that runs the model and watches it.

    Args:
        model: from `as_functional`; it may have no mixture at all.

    Returns:
        A function of the list of the model's input arrays.
    """
    try:
        blocks = find_blocks(model)
    except ValueError:
        blocks = []

    def run(*inputs):
        with _recorded(blocks) as pairs:
            batch = inputs[0] if len(inputs) == 1 else list(inputs)
            outputs = model(batch, training=False)
        return tree.flatten(outputs), pairs

    program = kernels.compiled(run, model.variables)

    def observe(arrays):
        outputs, pairs = program(*map(ops.convert_to_tensor, arrays))
        return Observation(
            [ops.convert_to_numpy(y) for y in outputs],
            {path: ops.convert_to_numpy(n) for path, n in pairs.items()},
        )

    return observe


@contextlib.contextmanager
def _recorded(blocks: list[Mixture]) -> Iterator[dict]:
    """Counts the pairs of each block that is called inside the `with`."""
    pairs: dict = {}

    def record(block):
        apply_capacity = block.apply_capacity

        def and_count(*args, **kwargs):
            kept, capacity = apply_capacity(*args, **kwargs)
            counts = kernels.group_sizes_of(
                kept.expert_index, block.num_experts
            )
            pairs[block.path] = pairs.get(block.path, 0) + counts
            return kept, capacity

        return and_count

    try:
        for block in blocks:
            object.__setattr__(block, "apply_capacity", record(block))
        yield pairs
    finally:
        for block in blocks:
            block.__dict__.pop("apply_capacity", None)
