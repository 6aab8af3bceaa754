"""Warn, or stop training, if an expert receives almost no tokens.

E experts.
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from keras_moe import checks
from keras_moe.callbacks.block_callback import BlockCallback
from keras_moe.layers.mixture import Mixture
from keras_moe.model_surgery.find import paths_of


class BalanceGuard(BlockCallback):
    """Warn if an expert of a mixture starves for several epochs.

    An expert starves in an epoch in which it receives less than `min_share`
    of an even share of the pairs: less than `min_share / E` of them, with E the
    number of enabled experts. Disabled experts are left out. It can be combined
    with `keras.callbacks.EarlyStopping`.

    Args:
        min_share: float in 0 < min_share <= 1. Fraction of an even share below
            which an expert starves. Defaults to 0.01, one percent of it.
        patience: Positive int. Number of successive epochs in which an expert
            starves before it is reported. Defaults to 2.
        stop: bool. Whether to stop training then. Defaults to `False`.
        on_starving: Function `(block, experts)` or None. It is called after
            the warning, with the block and the list of the experts' indices.
            `None` (the default) calls nothing.

    Attributes:
        starving: Dict from the path of each reported block to the list of the
            experts that were last reported.

    Raises:
        ValueError: If an argument is out of its range, or if the model has
            no mixture: at the start of training, or at the end of the first
            epoch if `fit` builds the model.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras_moe.MoEBlock(4, 32, dropout=0.1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(
        np.random.normal(size=(32, 16)),
        np.random.randint(3, size=32),
        callbacks=[keras_moe.callbacks.BalanceGuard(patience=3)],
    )
    ```
    """

    def __init__(
        self,
        min_share: float = 0.01,
        patience: int = 2,
        stop: bool = False,
        on_starving: Callable[[Mixture, list[int]], None] | None = None,
    ):
        super().__init__()
        self.min_share = checks.check_above("min_share", min_share, 0, 1)
        self.patience = checks.check_positive_int("patience", patience)
        self.stop = checks.check_bool("stop", stop)
        self.on_starving = checks.check_callable(
            "on_starving", on_starving, optional=True
        )
        self.starving: dict[str, list[int]] = {}

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Find the blocks, and drop what earlier trainings counted."""
        super().on_train_begin(logs)
        self.starving = {}
        # By the id of a block: the epochs in which its experts starved.
        self._epochs: dict[int, np.ndarray] = {}

    def on_epoch_end(
        self, epoch: int, logs: dict[str, Any] | None = None
    ) -> None:
        """Count the epochs in which each expert starved."""
        super().on_epoch_end(epoch, logs)
        paths = paths_of(self.blocks)
        for path, block in zip(paths, self.blocks, strict=True):
            before = self._epochs.get(id(block), 0)
            epochs = (before + 1) * self._below_share(block)
            self._epochs[id(block)] = epochs
            experts = np.flatnonzero(epochs == self.patience).tolist()
            if experts:
                self._report(path, block, experts)

    def _below_share(self, block: Mixture) -> np.ndarray:
        """Return bool `(E,)`; all are False if nothing was routed."""
        load = ops.convert_to_numpy(block.expert_load)
        enabled = ops.convert_to_numpy(block.router.expert_enabled) > 0
        even = load[enabled].sum() / max(enabled.sum(), 1)
        below: np.ndarray = enabled & (load < self.min_share * even)
        return below

    def _report(self, path: str, block: Mixture, experts: list[int]) -> None:
        self.starving[path] = experts
        warnings.warn(
            f"Experts {experts} of MoEBlock {path!r} received less than "
            f"{self.min_share:.3g} of an even share for {self.patience} "
            "epoch(s). Raise `load_balancing_weight`, set "
            "`Router(expert_bias=True)` or `jitter`, or use fewer experts.",
            stacklevel=2,
        )
        if self.on_starving is not None:
            self.on_starving(block, experts)
        if self.stop:
            self.model.stop_training = True
