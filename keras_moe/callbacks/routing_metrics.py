"""Routing figures in the epoch logs."""

import keras
import numpy as np
from keras import ops

from keras_moe import metrics
from keras_moe.layers.find import find_blocks


class RoutingMetrics(keras.callbacks.Callback):
    """Puts the routing of every `MoEBlock` into the epoch logs.

    `moe/imbalance` is the largest expert load over the mean one (1 at perfect
    balance, E when one expert takes everything) and `moe/fraction_dropped` the
    share of pairs that capacity dropped; both are the mean over the blocks.
    `moe/<path>/imbalance` and `moe/<path>/fraction_dropped` are each block's.
    All are means over the epoch's training batches.

    The progress bar, `History` and, where it stands behind this one in the
    list, `TensorBoard` show them:
    `model.fit(..., callbacks=[RoutingMetrics(), TensorBoard()])`.

    Raises:
        ValueError: at the start of training, where the model has no
            `MoEBlock`.
    """

    def on_train_begin(self, logs=None):
        """Finds the blocks."""
        self.blocks = find_blocks(self.model)

    def on_epoch_begin(self, epoch, logs=None):
        """Starts each block's means afresh."""
        for block in self.blocks:
            block.reset_statistics()

    def on_epoch_end(self, epoch, logs=None):
        """Writes the epoch's figures into `logs`."""
        figures = {block.path: _figures(block) for block in self.blocks}
        for name in ("imbalance", "fraction_dropped"):
            values = {path: f[name] for path, f in figures.items()}
            logs[f"moe/{name}"] = float(np.mean(list(values.values())))
            for path, value in values.items():
                logs[f"moe/{path}/{name}"] = value


def _figures(block):
    imbalance = metrics.load_imbalance(block.expert_load)
    dropped = ops.convert_to_numpy(block.fraction_dropped)
    return {
        "imbalance": float(ops.convert_to_numpy(imbalance)),
        "fraction_dropped": float(dropped[0]),
    }
