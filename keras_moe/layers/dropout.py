"""Seeds for dropout in a program that runs on several devices.

A seed generator writes its next state, which must be the same on all devices.
So the seed is drawn outside the program of a device.
"""

import keras
from keras import ops

from keras_moe.kernels import Part
from keras_moe.types import Tensor


class DrawnSeed(keras.random.SeedGenerator):
    """Passes a seed that was already drawn to `keras.random`."""

    def __init__(self, seed: Tensor):
        self.seed = seed

    def next(self, ordered: bool = True) -> Tensor:
        """Return the seed."""
        return self.seed


def seed_of_part(seed: Tensor, part: Part) -> DrawnSeed:
    """Return a different seed on each device, derived from a common seed."""
    number = ops.cast(part.number, seed.dtype)
    # The factor is above the number of steps that a generator takes.
    steps = ops.stack([number * 1_000_003, ops.zeros_like(number)])
    return DrawnSeed(seed + steps)
