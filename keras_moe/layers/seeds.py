"""Random seeds that a recomputation repeats."""

import keras

from keras_moe import kernels
from keras_moe.types import Tensor


class SeedGenerator(keras.random.SeedGenerator):
    """Draws seeds, and repeats them when a forward pass is recomputed.

    Recomputation, as in `torch.utils.checkpoint`, must use the jitter, the
    noise, and the dropout of the first run, and must not change the state.
    """

    def next(self, ordered: bool = True) -> Tensor:
        """Return the next seed; in a recomputation, that of the first run."""
        draw = super().next
        return kernels.first_value(lambda: draw(ordered))
