"""A loss weight that changes while a model trains."""

from typing import Any

import keras
from keras import ops

from keras_moe import checks, kernels
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.quantization import KeptInFloats
from keras_moe.types import Shape, Tensor


class ScheduledWeight(KeptInFloats, MoELayer):
    """A number that follows a schedule of the training steps.

    A Python number becomes a constant of the compiled step. This one is
    computed from a count that is a weight, so that it moves without another
    compilation, on every backend, and goes on where a saved model stopped.

    Args:
        schedule: a `keras.optimizers.schedules.LearningRateSchedule`.
        **kwargs: of `keras.layers.Layer`.

    Weights: `steps` `(1,)`, calls of `advance` so far; float32, which counts
    to 16 million.
    """

    def __init__(self, schedule, **kwargs):
        super().__init__(**kwargs)
        self.schedule = schedule

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates the count; the shape of the inputs does not matter."""
        self.steps = self.add_weight(
            name="steps",
            shape=(1,),
            initializer="zeros",
            dtype="float32",
            trainable=False,
            autocast=False,
            aggregation="mean",
        )

    def advance(self) -> Tensor:
        """Returns the schedule's float32 scalar and counts one step.

        The count of a frozen layer stands still.
        """
        steps = kernels.first_value(lambda: self.steps.value)
        value = self.schedule(ops.reshape(steps, ()))
        if self.trainable:
            self.write(self.steps, ops.add(self.steps, 1.0))
        return ops.cast(value, "float32")


def loss_weight_of(name: str, value) -> tuple[Any, ScheduledWeight | None]:
    """Return a loss weight, and a layer for it if it is a schedule.

    Args:
        name: the argument's.
        value: None, a number or a schedule.
    """
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value, ScheduledWeight(value, name="scheduled_weight")
    if value is not None:
        value = checks.check_weight(name, value)
    return value, None
