"""TensorFlow: `ClippedSwiGLU` with a hand-written gradient.

The gradient that TensorFlow derives has twice as many operations, and keeps
more than gate and up.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import tensorflow as tf

from keras_moe._tensorflow import in_forward_mode, is_recorded
from keras_moe.kernels.gated_units import ClippedSwiGLU
from keras_moe.kernels.tensorflow.gradients import Outputs, with_gradient
from keras_moe.types import Activation, GatedUnit, Tensor


class LightClippedSwiGLU(GatedUnit):
    """Computes a `ClippedSwiGLU` with the gradient of this file."""

    def __init__(self, unit: ClippedSwiGLU) -> None:
        self.unit = unit

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return the hidden units."""
        # Hand-written gradients have no forward mode.
        if in_forward_mode(gate) or not is_recorded():
            return hidden_units(self.unit, up, gate)
        forward = partial(_forward, self.unit)
        return with_gradient(forward, partial(_backward, self.unit), up, gate)


def light_activation(activation: Activation) -> Activation:
    """Return an activation with fewer operations, if there is one."""
    if type(activation) is ClippedSwiGLU:
        return LightClippedSwiGLU(activation)
    return activation


def hidden_units(unit: ClippedSwiGLU, up: Tensor, gate: Tensor) -> Tensor:
    """Return the hidden units."""
    _, sigmoid, clipped, factor = _parts(unit, up, gate)
    return clipped * sigmoid * factor


def gradients(
    unit: ClippedSwiGLU, d_hidden: Tensor, up: Tensor, gate: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Return the hidden units, and the gradients of up and of gate."""
    scaled, sigmoid, clipped, factor = _parts(unit, up, gate)
    swish = clipped * sigmoid
    steep = swish if unit.alpha == 1 else scaled * sigmoid
    slope = sigmoid + (steep - steep * sigmoid)
    inside = tf.abs(up) <= unit.limit
    d_up = tf.where(inside, d_hidden * swish, 0)
    d_gate = tf.where(gate <= unit.limit, d_hidden * factor * slope, 0)
    return swish * factor, [d_up, d_gate]


def _forward(unit: ClippedSwiGLU, up: Tensor, gate: Tensor) -> Outputs:
    return hidden_units(unit, up, gate), []


def _backward(
    unit: ClippedSwiGLU, args: Sequence[Tensor], _: Any, d_hidden: Tensor
) -> Sequence[Tensor]:
    return gradients(unit, d_hidden, *args)[1]


def _parts(
    unit: ClippedSwiGLU, up: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return alpha times the clipped gate, its sigmoid, the gate, the factor.

    The product of the last three is the hidden units.
    """
    clipped = tf.minimum(gate, unit.limit)
    scaled = clipped if unit.alpha == 1 else clipped * unit.alpha
    factor = tf.clip_by_value(up, -unit.limit, unit.limit)
    if unit.up_offset:
        factor += unit.up_offset
    return scaled, tf.sigmoid(scaled), clipped, factor
