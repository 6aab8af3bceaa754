"""Base class of all layers of the package."""

import keras

from keras_moe.layers.added_losses import AddedLosses
from keras_moe.layers.rematerialized import Rematerialized
from keras_moe.layers.traces import Traced
from keras_moe.layers.trainable_parts import TrainableParts


class MoELayer(
    TrainableParts, AddedLosses, Rematerialized, Traced, keras.layers.Layer
):
    """Base class of layers: frozen parts, added losses, recomputation.

    Args:
        trainable_parts: Argument of `TrainableParts`. Only saved configs have
            it.
        **kwargs: Arguments of `keras.layers.Layer`.
    """
