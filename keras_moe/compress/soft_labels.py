"""Three differences between a student and a teacher.

B batch, C classes, S positions, D hidden_dim, T tokens, E experts.
"""

from typing import Any

import keras
from keras import ops

from keras_moe.types import Tensor

LEAST = 1e-9  # lower bound of a probability before its logarithm


class SoftLabelLoss(keras.losses.Loss):
    """Compute `t^2 KL(p || q)` of softened class probabilities.

    `p_i = exp(z_i / t) / sum_j exp(z_j / t)` of the logits z and a temperature
    t. The paper's cross-entropy has the same gradients; the divergence is 0 if
    the two agree. The gradients of soft targets decrease with `1 / t^2`, which
    the factor compensates (section 2).

    Reference: Hinton et al. 2015, "Distilling the Knowledge in a Neural
    Network", eq. 1.

    Args:
        temperature: float above 0. t. Defaults to 1.
        from_logits: bool. Whether the inputs are logits. `False` (the default)
            means probabilities, whose logarithms are used as logits.
        **kwargs: Arguments of `keras.losses.Loss`.
    """

    def __init__(
        self,
        temperature: float = 1.0,
        from_logits: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.temperature = temperature
        self.from_logits = from_logits

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the divergence `(...)` of outputs `(..., C)`.

        Args:
            y_true: float `(..., C)`. Outputs of the teacher.
            y_pred: float `(..., C)`. Outputs of the student.
        """
        p, q = (self._log_probs(x) for x in (y_true, y_pred))
        divergence = ops.sum(ops.exp(p) * (p - q), axis=-1)
        return self.temperature**2 * divergence

    def _log_probs(self, x: Tensor) -> Tensor:
        x = ops.cast(x, "float32")
        if not self.from_logits:
            x = ops.log(ops.maximum(x, keras.config.epsilon()))
        return ops.log_softmax(x / self.temperature, axis=-1)


def hidden_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Return the mean squared difference of hidden states without padding.

    Args:
        teacher: float `(B, ..., D)`.
        student: float of the same shape. If it has a Keras mask, positions with
            the mask False are padding.

    Returns:
        float32 scalar.
    """
    return keras.losses.MeanSquaredError()(teacher, student)


def router_loss(
    teacher: Tensor, student: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Return the mean over tokens of `KL(p || q)` of router probabilities.

    Args:
        teacher: float32 `(T, E)`. p.
        student: float32 `(T, E)`. q.
        mask: bool `(T,)` or None. False for padding, which is excluded. `None`
            (the default) means that there is no padding.

    Returns:
        float32 scalar.
    """
    p, q = (ops.log(ops.maximum(x, LEAST)) for x in (teacher, student))
    each = ops.sum(ops.multiply(teacher, p - q), axis=-1)
    if mask is None:
        return ops.mean(each)
    real = ops.cast(ops.reshape(mask, (-1,)), "float32")
    return ops.sum(each * real) / ops.maximum(ops.sum(real), 1.0)
