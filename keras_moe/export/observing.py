"""What a model says to a batch, and which experts it asked.

E experts.
"""

from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
from keras import ops, tree

from keras_moe import kernels
from keras_moe.model_surgery.find import blocks_of, paths_of
from keras_moe.model_surgery.observe import Call, computing_once, watching


class Observation(NamedTuple):
    """outputs: list of arrays. pairs: from the path of each mixture that
    chooses to int `(E,)`, the pairs that its experts computed."""

    outputs: list[np.ndarray]
    pairs: dict[str, np.ndarray]


def observer(model: keras.Model) -> Callable[..., Observation]:
    """Returns a function of a batch that runs the model and watches it.

    Args:
        model: from `as_functional`; it may have no mixture at all.

    Returns:
        A function of the list of the model's input arrays.
    """
    blocks = blocks_of(model)

    def run(*inputs):
        batch = inputs[0] if len(inputs) == 1 else list(inputs)
        experts = [block.experts for block in blocks]
        with computing_once(model), watching(experts) as calls:
            outputs = model(batch, training=False)
        counted = [_pairs(calls[id(b.experts)]) for b in blocks]
        pairs = dict(zip(paths_of(blocks), counted, strict=True))
        return tree.flatten(outputs), {p: n for p, n in pairs.items() if n}

    programs = kernels.Programs(model)

    def observe(arrays):
        outputs, pairs = programs.of(run)(*map(ops.convert_to_tensor, arrays))
        return Observation(
            [ops.convert_to_numpy(y) for y in outputs],
            {
                path: sum(map(ops.convert_to_numpy, counts))
                for path, counts in pairs.items()
            },
        )

    return observe


def _pairs(calls: list[Call]):
    """The pairs of each expert in all calls of a bank, a list of `(E,)`."""
    return [call.kwargs["group_sizes"] for call in calls]
