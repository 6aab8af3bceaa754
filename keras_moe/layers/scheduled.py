"""Loss weights that follow a schedule of the training steps."""

from typing import Any, TypeAlias

import keras
from keras import ops

from keras_moe import checks, kernels
from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.quantization import KeptInFloats
from keras_moe.types import Shape, Tensor

LossWeight: TypeAlias = float | keras.optimizers.schedules.LearningRateSchedule
"""The weight of a loss, or a schedule of it over the training steps."""


class ScheduledWeight(KeptInFloats, MoELayer):
    """Computes a loss weight from a schedule and a count of training steps.

    A Python number is a constant of a compiled step. The count is a weight, so
    that the loss weight changes without another compilation, on every backend,
    and a saved model resumes the schedule.

    Args:
        schedule: A `keras.optimizers.schedules.LearningRateSchedule`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Weights: `steps` `(1,)`, calls of `advance` so far; float32, which counts
    to 16 million.
    """

    def __init__(
        self,
        schedule: keras.optimizers.schedules.LearningRateSchedule,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.schedule = schedule

    def build(self, input_shape: Shape | None = None) -> None:
        """Create the count; the shape of the inputs does not matter."""
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
        """Return the current weight, a float32 scalar, and count one step.

        A frozen layer does not count.
        """
        steps = kernels.first_value(lambda: self.steps.value)
        value = self.schedule(ops.reshape(steps, ()))
        if self.trainable:
            self.write(self.steps, ops.add(self.steps, 1.0))
        return ops.cast(value, "float32")


def loss_weight_of(
    name: str, value: LossWeight | None
) -> tuple[LossWeight | None, ScheduledWeight | None]:
    """Check a loss weight; if it is a schedule, also return a layer for it.

    Args:
        name: Str. Name of the argument.
        value: None, a number, or a schedule.
    """
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        return value, ScheduledWeight(value, name="scheduled_weight")
    if value is not None:
        value = checks.check_weight(name, value)
    return value, None
