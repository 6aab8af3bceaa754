"""Refuse optimizer options that fail with several replicas of TensorFlow.

`docs/optimizers-and-layouts.md` has a table of them, which a test checks.
"""

from collections.abc import Callable
from typing import Any

import keras

from keras_moe.distribution.optimizers import optimizers_of

CLIPS = "each replica clips its own gradients, before their mean"
MEETS = "the replicas cannot synchronize in some steps and not in others"
# For each option, why Keras 3.15 does not train as on one device.
FAULTS = {
    "clipnorm": CLIPS,
    "global_clipnorm": CLIPS,
    "clipvalue": CLIPS,
    "gradient_accumulation_steps": MEETS,
    "ema_overwrite_frequency": MEETS,
}
REMEDIES = {
    "gradient_accumulation_steps": "Pass None, and a larger batch.",
    "ema_overwrite_frequency": "Pass None; `use_ema=True` assigns the averages "
    "at the end of `fit`.",
}
OTHER_BACKEND = (
    "Pass None, or train on PyTorch or JAX, which clip the gradients of the "
    "whole batch."
)


def check_optimizer(model: keras.Model) -> None:
    """Raise if an option of the optimizer does not train as on one device.

    Args:
        model: Model that was made in the scope of a strategy.

    Raises:
        ValueError: If the strategy has several replicas, and Keras applies an
            option of the optimizer to the gradients or weights of each.
    """
    replicas = model.distribute_strategy.num_replicas_in_sync
    if replicas == 1:
        return
    for optimizer in optimizers_of(model):
        for name, fault in FAULTS.items():
            value = getattr(optimizer, name, None)
            if value is None or not _is_used(optimizer, name):
                continue
            raise ValueError(
                f"`{name}` must be None under a tf.distribute strategy of "
                f"several replicas: {fault}. Received: {name}={value} of "
                f"{type(optimizer).__name__}, {replicas} replicas. "
                f"{REMEDIES.get(name, OTHER_BACKEND)}"
            )


def _is_used(optimizer: keras.optimizers.Optimizer, name: str) -> bool:
    return name != "ema_overwrite_frequency" or bool(optimizer.use_ema)


class CheckedMaker:
    """Check the optimizer, then call a model's own `make_train_function`.

    `fit` and `train_on_batch` call it before the first step.

    Args:
        model: Model that was made in the scope of a strategy.
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.own: Callable[..., Any] = model.make_train_function

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Make the function of a training step."""
        check_optimizer(self.model)
        return self.own(*args, **kwargs)
