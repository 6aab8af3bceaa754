"""Change a loss weight over the first training steps."""

from typing import Any

import keras
from keras import ops

from keras_moe import checks
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class BalanceWarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Change a loss weight linearly, then keep it constant.

    `MoEBlock(8, 128, load_balancing_weight=BalanceWarmUp(0.01, 1000))` trains
    the router with little balancing at first. With `start` above `weight`, the
    weight decreases instead. To give `steps` in epochs, multiply by the number
    of batches per epoch.

    Args:
        weight: float of 0 or above. Weight at the end. Defaults to 0.01.
        steps: Positive int. Number of training steps until then. Defaults to
            1000.
        start: float of 0 or above. Weight at the beginning. Defaults to 0.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range.

    Example:

    ```python
    weight = keras_moe.training.BalanceWarmUp(0.01, steps=1000)
    block = keras_moe.MoEBlock(8, 128, load_balancing_weight=weight)
    ```
    """

    def __init__(
        self, weight: float = 0.01, steps: int = 1000, start: float = 0.0
    ):
        self.weight = checks.check_weight("weight", weight)
        self.steps = checks.check_positive_int("steps", steps)
        self.start = checks.check_weight("start", start)

    def __call__(self, step: Tensor) -> Tensor:
        """Return the weight at a step, a float32 scalar."""
        done = ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)
        return self.start + (self.weight - self.start) * done

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this schedule again."""
        return {"weight": self.weight, "steps": self.steps, "start": self.start}
