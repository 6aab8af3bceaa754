"""The base of callbacks that follow a model's mixtures."""

from typing import Any

import keras

from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.find import blocks_of, find_blocks


class BlockCallback(keras.callbacks.Callback):
    """Base of callbacks that read the routing statistics of each epoch.

    On TensorFlow, `fit` builds a model in the first training step, so that
    the blocks, or their weights, may not exist until the first epoch ends.

    Attributes:
        blocks: List of the model's mixtures that are built.
    """

    reads_logs = False  # see `keras_moe.callbacks.order`

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the blocks, which a built model must have."""
        if self.model.built:
            find_blocks(self.model)
        self.blocks = built_blocks(self.model)

    def on_epoch_begin(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Reset the statistics of each block."""
        for block in self.blocks:
            block.reset_statistics()

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Find the blocks that this epoch has built."""
        find_blocks(self.model)
        self.blocks = built_blocks(self.model)


def built_blocks(model: keras.Model) -> list[Mixture]:
    """Return the mixtures of a model that have their weights."""
    return [block for block in blocks_of(model) if block.built]
