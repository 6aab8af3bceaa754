"""Two dropout passes that must agree.

B batch, C classes.
"""

import keras
from keras import ops

from keras_moe import checks
from keras_moe.model_surgery.wrapper import Wrapper
from keras_moe.types import Tensor


class SymmetricDivergence(keras.losses.Loss):
    """`(KL(P || Q) + KL(Q || P)) / 2 = sum_c (p_c - q_c) log(p_c / q_c) / 2`.

    Args:
        from_logits: whether P and Q come as logits.
        **kwargs: of `keras.losses.Loss`.
    """

    def __init__(self, from_logits: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.from_logits = from_logits

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Compares `(..., C)` with `(..., C)`; returns `(...)`."""
        p, q = (self._log_probs(x) for x in (y_true, y_pred))
        return 0.5 * ops.sum((ops.exp(p) - ops.exp(q)) * (p - q), axis=-1)

    def _log_probs(self, x):
        if self.from_logits:
            return ops.log_softmax(x, axis=-1)
        return ops.log(ops.maximum(x, keras.config.epsilon()))


@keras.saving.register_keras_serializable(package="keras_moe")
class RDrop(Wrapper):
    """Trains a classifier so that its dropout matters little.

    R-Drop (Liang et al. 2021, "R-Drop: Regularized Dropout for Neural
    Networks", eq. 4): each batch goes through the model twice, with other
    dropout, and the loss is `NLL_1 + NLL_2 + alpha * (KL(P_1 || P_2) +
    KL(P_2 || P_1)) / 2`. In evaluation it is the plain loss. What layers add,
    such as load-balancing losses, counts once. A step costs two.

    Args:
        model: a classifier with one output `(..., C)` and dropout, or jitter,
            somewhere.
        alpha: 0 or above. The paper has 5 for translation, 1 for GLUE and 0.6
            for ViT.
        from_logits: whether the outputs are logits; else probabilities.
        **kwargs: of `keras.Model`.

    Raises:
        ValueError: for an argument out of its range, and in training for
            outputs of another form, or where there is no compiled loss.
    """

    arguments = ("alpha", "from_logits")

    def __init__(
        self, model, alpha: float = 1.0, from_logits: bool = False, **kwargs
    ):
        super().__init__(model, **kwargs)
        self.alpha = checks.check_weight("alpha", alpha)
        self.from_logits = checks.check_bool("from_logits", from_logits)
        self.divergence = SymmetricDivergence(from_logits)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the scalar loss of a batch; see the class."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        if not hasattr(y_pred, "shape") or y_pred.shape[-1] in (None, 1):
            raise ValueError(
                "RDrop's `model` must have one output of shape (..., C), with "
                "two or more classes. Received: "
                f"{keras.tree.map_structure(lambda t: t.shape, y_pred)}. "
                "Give a yes-or-no classifier two outputs."
            )
        with self.no_trace():
            other = self.inner(x, training=True)
            loss = loss + self.task_loss(y, other, sample_weight)
            apart = self.divergence(y_pred, other, sample_weight)
        return loss + self.alpha * apart
