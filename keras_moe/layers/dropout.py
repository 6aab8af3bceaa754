"""Dropout inside the program of one device of several.

A seed generator writes its next state, which there would be one device's
alone: its seed is drawn outside.
"""

import keras
from keras import ops

from keras_moe.kernels import Part
from keras_moe.types import Tensor


class DrawnSeed(keras.random.SeedGenerator):
    """What `keras.random` takes for a seed, where it was drawn before."""

    def __init__(self, seed: Tensor):
        self.seed = seed

    def next(self, ordered: bool = True) -> Tensor:
        """Returns the seed."""
        return self.seed


def seed_of_part(seed: Tensor, part: Part) -> DrawnSeed:
    """Returns another seed for each device, of one that all have."""
    number = ops.cast(part.number, seed.dtype)
    # A prime far above the number of steps that a generator takes.
    steps = ops.stack([number * 1_000_003, ops.zeros_like(number)])
    return DrawnSeed(seed + steps)
