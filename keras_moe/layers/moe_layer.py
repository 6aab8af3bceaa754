"""What every layer of the package is."""

import keras

from keras_moe.layers.added_losses import AddedLosses
from keras_moe.layers.rematerialized import Rematerialized
from keras_moe.layers.traces import Traced
from keras_moe.layers.trainable_parts import TrainableParts


class MoELayer(
    TrainableParts, AddedLosses, Rematerialized, Traced, keras.layers.Layer
):
    """Base of the layers: frozen parts, added losses, recomputation.

    Args:
        trainable_parts: see `TrainableParts`; `get_config` makes it.
        **kwargs: of `keras.layers.Layer`.
    """
