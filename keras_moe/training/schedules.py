"""How a loss weight grows over the first training steps."""

import keras
from keras import ops

from keras_moe import checks
from keras_moe.types import Tensor


@keras.saving.register_keras_serializable(package="keras_moe")
class BalanceWarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Moves a weight along a line, then holds it.

    `MoEBlock(8, 128, load_balancing_weight=BalanceWarmUp(0.01, 1000))` lets
    the router look around before it has to be fair; with `start` above
    `weight` it is the other way round. For epochs, multiply by the batches of
    one.

    Args:
        weight: 0 or above, where it ends.
        steps: training steps until there, 1 or more.
        start: 0 or above, where it begins.

    Raises:
        ValueError: for an argument out of its range.
    """

    def __init__(
        self, weight: float = 0.01, steps: int = 1000, start: float = 0.0
    ):
        self.weight = checks.check_weight("weight", weight)
        self.steps = checks.check_positive_int("steps", steps)
        self.start = checks.check_weight("start", start)

    def __call__(self, step: Tensor) -> Tensor:
        """Returns the weight at a step, a float32 scalar."""
        done = ops.minimum(ops.cast(step, "float32") / self.steps, 1.0)
        return self.start + (self.weight - self.start) * done

    def get_config(self) -> dict:
        """Returns the arguments that build this schedule again."""
        return {"weight": self.weight, "steps": self.steps, "start": self.start}
