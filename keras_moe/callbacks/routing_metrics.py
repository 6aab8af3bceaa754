"""Add routing figures to the logs of each epoch."""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_moe import checks, metrics
from keras_moe.callbacks.block_callback import BlockCallback
from keras_moe.callbacks.order import warn_of_earlier_readers
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.find import paths_of

NAMES = ("imbalance", "fraction_dropped")


class RoutingMetrics(BlockCallback):
    """Add figures about the routing to the logs of each epoch.

    `moe/imbalance` is the largest expert load over the mean load: 1 at
    perfect balance, E if one expert gets every token; disabled experts are left
    out. `moe/fraction_dropped` is the share of routed pairs that were dropped
    because of the capacity. Both are means over the epoch's training batches
    and over the model's `MoEBlock`s and `MixtureOfModels`.

    The progress bar and `History` show them, and so do `TensorBoard` and
    `CSVLogger` if they come after this callback in the list. A warning names
    the callbacks that come before it and would miss the figures. A callback
    class of your own counts as a reader if it has an `on_epoch_end`, unless its
    attribute `reads_logs` is False.

    Args:
        per_layer: bool. Whether to add `moe/<path>/imbalance` and
            `moe/<path>/fraction_dropped` for each block, by its path in the
            model. `False` (the default) adds only the means.

    Raises:
        ValueError: If `per_layer` is not a bool, or if the model has no
            mixture: at the start of training, or at the end of the first
            epoch if `fit` builds the model.

    Example:

    ```python
    model = keras.Sequential(
        [keras.Input((10, 16)), keras_moe.MoEBlock(4, 32)]
    )
    model.compile("adam", "mse")
    x = np.random.normal(size=(32, 10, 16))
    history = model.fit(
        x, x, callbacks=[keras_moe.callbacks.RoutingMetrics()]
    )
    history.history["moe/imbalance"]  # one number per epoch
    ```
    """

    def __init__(self, per_layer: bool = False):
        super().__init__()
        self.per_layer = checks.check_bool("per_layer", per_layer)

    def set_model(self, model: keras.Model) -> None:
        """Warn of callbacks that read the logs before this one."""
        super().set_model(model)
        warn_of_earlier_readers(self, "moe/")

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Write the epoch's figures into `logs`."""
        super().on_epoch_end(epoch, logs)
        logs = {} if logs is None else logs
        figures = [_figures(block) for block in self.blocks]
        for name in NAMES:
            values = [f[name] for f in figures]
            logs[f"moe/{name}"] = float(np.mean(values)) if values else 0.0
        if self.per_layer:
            paths = paths_of(self.blocks)
            for path, own in zip(paths, figures, strict=True):
                logs.update({f"moe/{path}/{name}": own[name] for name in NAMES})


def _figures(block: Mixture) -> dict[str, float]:
    enabled = ops.convert_to_numpy(block.router.expert_enabled) > 0
    imbalance = metrics.load_imbalance(block.expert_load, enabled)
    dropped = ops.convert_to_numpy(block.fraction_dropped)
    return {
        "imbalance": float(ops.convert_to_numpy(imbalance)),
        "fraction_dropped": float(dropped[0]),
    }
