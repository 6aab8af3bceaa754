"""Random seeds that a recomputation draws again."""

import keras

from keras_moe import kernels
from keras_moe.types import Tensor


class SeedGenerator(keras.random.SeedGenerator):
    """A seed generator whose draws are repeated when a pass is.

    Recomputation, such as `torch.utils.checkpoint`, must see the jitter, the
    noise, and the dropout of the first run, and must not move the state.
    """

    def next(self, ordered: bool = True) -> Tensor:
        """Returns the next seed, or the first run's in a recomputation."""
        draw = super().next
        return kernels.first_value(lambda: draw(ordered))
