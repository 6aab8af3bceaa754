"""Initializers that draw each expert's slice of a stacked weight separately."""

import zlib

import keras
import numpy as np
from keras import ops

from keras_moe.types import Tensor


class PerExpert:
    """Initializes `(E, ...)` as E separate draws of shape `(...)`.

    Keras reads a rank-3 shape as a convolution, so an initializer that scales
    with the fan (`glorot_uniform`, `he_normal`, ...) would give values that are
    too small by sqrt(E) on `(E, D, F)`. A Keras initializer also repeats its
    values in every call, so each expert and each weight gets a seed that is
    derived from the seed of the initializer.

    Args:
        initializer: A Keras initializer for one expert.
        name: Str. Name of the weight. Weights of different names get different
            values from the same initializer.
    """

    def __init__(self, initializer: keras.initializers.Initializer, name: str):
        self.initializer = initializer
        self.name = name

    def __call__(
        self, shape: tuple[int, ...], dtype: str | None = None
    ) -> Tensor:
        """Return the stacked weight, `shape`, of `dtype`."""
        num_experts, *own = shape
        draws = (
            reseeded(self.initializer, self.name, e) for e in range(num_experts)
        )
        return ops.stack([draw(tuple(own), dtype) for draw in draws])


def reseeded(
    initializer: keras.initializers.Initializer, name: str, index: int
) -> keras.initializers.Initializer:
    """Return the initializer with a seed derived from `name` and `index`.

    An initializer without an int seed is returned unchanged: it draws nothing,
    or its `SeedGenerator` gives a new seed in each call.
    """
    seed = getattr(initializer, "seed", None)
    if not isinstance(seed, int):
        return initializer
    words = [seed % 2**32, zlib.crc32(name.encode()), index]
    own_seed = int(np.random.SeedSequence(words).generate_state(1)[0])
    config = {**initializer.get_config(), "seed": own_seed}
    return type(initializer).from_config(config)
