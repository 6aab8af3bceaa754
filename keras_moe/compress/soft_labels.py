"""What a student learns from a teacher: three differences.

B batch, C classes, S positions, D hidden_dim, T tokens, E experts.
"""

import keras
from keras import ops

from keras_moe.types import Tensor

LEAST = 1e-9  # of a probability, before its logarithm


class SoftLabelLoss(keras.losses.Loss):
    """`t^2 KL(p || q)`, of the softmax of logits over a temperature t.

    `p_i = exp(z_i / t) / sum_j exp(z_j / t)` (Hinton et al. 2015, "Distilling
    the Knowledge in a Neural Network", eq. 1). The paper's cross-entropy has
    the same gradients; this one is 0 where the two agree. The gradients of
    soft targets fall with `1 / t^2`, hence the factor (section 2).

    Args:
        temperature: t, above 0.
        from_logits: whether outputs are logits; else probabilities, whose
            logarithms stand for the logits.
        **kwargs: of `keras.losses.Loss`.
    """

    def __init__(
        self, temperature: float = 1.0, from_logits: bool = False, **kwargs
    ):
        super().__init__(**kwargs)
        self.temperature = temperature
        self.from_logits = from_logits

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Compares the teacher's `(..., C)` with the student's; `(...)`."""
        p, q = (self._log_probs(x) for x in (y_true, y_pred))
        divergence = ops.sum(ops.exp(p) * (p - q), axis=-1)
        return self.temperature**2 * divergence

    def _log_probs(self, x):
        x = ops.cast(x, "float32")
        if not self.from_logits:
            x = ops.log(ops.maximum(x, keras.config.epsilon()))
        return ops.log_softmax(x / self.temperature, axis=-1)


def hidden_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean squared difference of hidden states; padding does not count.

    Args:
        teacher: float `(B, ..., D)`.
        student: the same shape, projected if need be. The mask that Keras has
            for it says what is padding.

    Returns:
        float32 scalar.
    """
    return keras.losses.MeanSquaredError()(teacher, student)


def router_loss(
    teacher: Tensor, student: Tensor, mask: Tensor | None = None
) -> Tensor:
    """`KL(p || q)` of router probabilities, the mean over the tokens.

    Args:
        teacher: float32 `(T, E)`, p.
        student: float32 `(T, E)`, q.
        mask: bool `(T,)`, False for padding, or None.

    Returns:
        float32 scalar.
    """
    p, q = (ops.log(ops.maximum(x, LEAST)) for x in (teacher, student))
    each = ops.sum(ops.multiply(teacher, p - q), axis=-1)
    if mask is None:
        return ops.mean(each)
    real = ops.cast(ops.reshape(mask, (-1,)), "float32")
    return ops.sum(each * real) / ops.maximum(ops.sum(real), 1.0)
