"""A warning, or an end, when an expert gets next to nothing.

E experts.
"""

import warnings
from collections.abc import Callable

import numpy as np
from keras import ops

from keras_moe import checks
from keras_moe.callbacks.block_callback import BlockCallback
from keras_moe.layers import MoEBlock
from keras_moe.model_surgery.find import paths_of


class BalanceGuard(BlockCallback):
    """Watches that no expert of any `MoEBlock` starves.

    An expert starves in an epoch in which it receives less than `min_share`
    of an even share of the pairs: less than `min_share / E` of them. One that
    is switched off does not count. It goes with
    `keras.callbacks.EarlyStopping` on the task's metric: each looks at its own.

    Args:
        min_share: in 0 < min_share <= 1. 0.01 is one percent of even.
        patience: epochs in a row before it says so, 1 or more.
        stop: whether training ends then.
        on_starving: function `(block, experts)`, called beside the warning
            with the block and the list of its experts' numbers.

    Attributes:
        starving: dict from the path of each block to the experts that it last
            reported.

    Raises:
        ValueError: If an argument is out of its range, or if the model has
            no mixture: at the start of training, or at the end of the first
            epoch if `fit` builds the model.
    """

    def __init__(
        self,
        min_share: float = 0.01,
        patience: int = 2,
        stop: bool = False,
        on_starving: Callable[[MoEBlock, list[int]], None] | None = None,
    ):
        super().__init__()
        self.min_share = checks.check_above("min_share", min_share, 0, 1)
        self.patience = checks.check_positive_int("patience", patience)
        self.stop = checks.check_bool("stop", stop)
        self.on_starving = checks.check_callable(
            "on_starving", on_starving, optional=True
        )
        self.starving: dict[str, list[int]] = {}

    def on_train_begin(self, logs=None):
        """Finds the blocks and forgets earlier trainings."""
        super().on_train_begin(logs)
        self.starving = {}
        self._epochs: dict[int, np.ndarray] = {}  # by block, below its share

    def on_epoch_end(self, epoch, logs=None):
        """Counts each expert's epochs below its share."""
        super().on_epoch_end(epoch, logs)
        paths = paths_of(self.blocks)
        for path, block in zip(paths, self.blocks, strict=True):
            epochs = self._epochs.get(id(block), 0)
            epochs = (epochs + 1) * self._below_share(block)
            self._epochs[id(block)] = epochs
            experts = np.flatnonzero(epochs == self.patience).tolist()
            if experts:
                self._report(path, block, experts)

    def _below_share(self, block):
        """Bool `(E,)`; all False where nothing was routed."""
        load = ops.convert_to_numpy(block.expert_load)
        enabled = ops.convert_to_numpy(block.router.expert_enabled) > 0
        even = load[enabled].sum() / max(enabled.sum(), 1)
        return enabled & (load < self.min_share * even)

    def _report(self, path, block, experts):
        self.starving[path] = experts
        warnings.warn(
            f"Experts {experts} of MoEBlock {path!r} received less than "
            f"{self.min_share:.3g} of an even share for {self.patience} "
            "epoch(s). Raise `load_balancing_weight`, or set "
            "`Router(expert_bias=True)`, `jitter` or fewer experts.",
            stacklevel=2,
        )
        if self.on_starving is not None:
            self.on_starving(block, experts)
        if self.stop:
            self.model.stop_training = True
