"""Each expert's slice of a stacked weight starts as a weight of its own."""

import zlib

import numpy as np
from keras import ops

from keras_moe.types import Tensor


class PerExpert:
    """Initialises `(E, ...)` as E separate draws of shape `(...)`.

    Keras reads a rank-3 shape as a convolution, so an initializer that scales
    with the fan (`glorot_uniform`, `he_normal`, ...) would come out sqrt(E)
    too small on `(E, D, F)`. A Keras initializer also repeats its values at
    every call; each expert and each weight therefore gets a seed derived from
    the initializer's own.

    Args:
        initializer: a Keras initializer for one expert.
        name: the weight's name, so that two weights of a layer that share an
            initializer start differently.
    """

    def __init__(self, initializer, name: str):
        self.initializer = initializer
        self.name = name

    def __call__(self, shape: tuple[int, ...], dtype=None) -> Tensor:
        """Returns the stacked weight, `shape`, of `dtype`."""
        num_experts, *own = shape
        draws = (
            reseeded(self.initializer, self.name, e) for e in range(num_experts)
        )
        return ops.stack([draw(tuple(own), dtype) for draw in draws])


def reseeded(initializer, name: str, index: int):
    """Returns the initializer with a seed of its own for `name` and `index`.

    One that draws nothing, or brings a `SeedGenerator` that moves on by
    itself, comes back as it is.
    """
    seed = getattr(initializer, "seed", None)
    if not isinstance(seed, int):
        return initializer
    words = [seed % 2**32, zlib.crc32(name.encode()), index]
    own_seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    config = {**initializer.get_config(), "seed": own_seed}
    return type(initializer).from_config(config)
