"""Observe the outputs of a model, and which experts compute them.

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
from keras_moe.types import Tensor


class Observation(NamedTuple):
    """Hold what a model computed for one batch.

    Attributes:
        outputs: List of the output arrays.
        pairs: Dict from the path of each mixture whose experts were called to
            an int array `(E,)`: the number of routed pairs of each expert.
    """

    outputs: list[np.ndarray]
    pairs: dict[str, np.ndarray]


def observer(model: keras.Model) -> Callable[[list[np.ndarray]], Observation]:
    """Return a function that runs a model on a batch and observes it.

    Args:
        model: From `as_functional`. It may have no mixtures.

    Returns:
        Function of the list of the model's input arrays that returns an
        `Observation`.
    """
    blocks = blocks_of(model)

    def run(*inputs: Tensor) -> tuple[list[Tensor], dict[str, list[Tensor]]]:
        batch = inputs[0] if len(inputs) == 1 else list(inputs)
        experts = [block.experts for block in blocks]
        with computing_once(model), watching(experts) as calls:
            outputs = model(batch, training=False)
        counted = [_pairs(calls[id(b.experts)]) for b in blocks]
        pairs = dict(zip(paths_of(blocks), counted, strict=True))
        return tree.flatten(outputs), {p: n for p, n in pairs.items() if n}

    programs = kernels.Programs(model)

    def observe(arrays: list[np.ndarray]) -> Observation:
        outputs, pairs = programs.of(run)(*map(ops.convert_to_tensor, arrays))
        return Observation(
            [ops.convert_to_numpy(y) for y in outputs],
            {
                path: sum(map(ops.convert_to_numpy, counts))
                for path, counts in pairs.items()
            },
        )

    return observe


def _pairs(calls: list[Call]) -> list[Tensor]:
    """Return the pairs of each expert, `(E,)`, in each call of a bank."""
    return [call.kwargs["group_sizes"] for call in calls]
