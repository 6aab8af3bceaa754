"""Train two passes with different dropout to agree.

B batch, C classes.
"""

from typing import Any

import keras
from keras import ops

from keras_moe import checks
from keras_moe.model_surgery.wrapper import Wrapper
from keras_moe.types import Tensor


class SymmetricDivergence(keras.losses.Loss):
    """Compute `(KL(P || Q) + KL(Q || P)) / 2` of class probabilities.

    It equals `sum_c (p_c - q_c) log(p_c / q_c) / 2`.

    Args:
        from_logits: bool. Whether P and Q are logits. `False` (the default)
            means probabilities.
        **kwargs: Arguments of `keras.losses.Loss`.
    """

    def __init__(self, from_logits: bool = False, **kwargs: Any):
        super().__init__(**kwargs)
        self.from_logits = from_logits

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the divergence `(...)` of two outputs `(..., C)`."""
        p, q = (self._log_probs(x) for x in (y_true, y_pred))
        return 0.5 * ops.sum((ops.exp(p) - ops.exp(q)) * (p - q), axis=-1)

    def _log_probs(self, x: Tensor) -> Tensor:
        if self.from_logits:
            return ops.log_softmax(x, axis=-1)
        return ops.log(ops.maximum(x, keras.config.epsilon()))


@keras.saving.register_keras_serializable(package="keras_moe")
class RDrop(Wrapper):
    """Train a classifier to give the same outputs under different dropout.

    Each batch passes through the model twice with different dropout, and the
    loss is `NLL_1 + NLL_2 + alpha * (KL(P_1 || P_2) + KL(P_2 || P_1)) / 2`. In
    evaluation, it is the compiled loss alone. The losses that layers add, such
    as load-balancing losses, count once. A step costs two steps without it.

    Reference: Liang et al. 2021, "R-Drop: Regularized Dropout for Neural
    Networks", eq. 4.

    Args:
        model: Classifier with one output `(..., C)` that contains dropout or
            jitter.
        alpha: float of 0 or above. Weight of the divergence. Defaults to 1. The
            paper uses 5 for translation, 1 for GLUE, and 0.6 for ViT.
        from_logits: bool. Whether the outputs are logits. `False` (the default)
            means probabilities.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range; or,
            in training, if the model has several outputs, fewer than two
            classes, or no compiled loss.

    Example:

    ```python
    classifier = keras.Sequential(
        [
            keras.Input((16,)),
            keras_moe.MoEBlock(4, 32, dropout=0.1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model = keras_moe.training.RDrop(classifier, alpha=1.0)
    model.compile("adam", "sparse_categorical_crossentropy")
    x = np.random.normal(size=(32, 16))
    model.fit(x, np.random.randint(3, size=32))  # trains `classifier`
    ```
    """

    arguments = ("alpha", "from_logits")

    def __init__(
        self,
        model: keras.Model,
        alpha: float = 1.0,
        from_logits: bool = False,
        **kwargs: Any,
    ):
        super().__init__(model, **kwargs)
        self.alpha = checks.check_weight("alpha", alpha)
        self.from_logits = checks.check_bool("from_logits", from_logits)
        self.divergence = SymmetricDivergence(from_logits)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the scalar loss of a batch; see the class."""
        loss = super().compute_loss(x, y, y_pred, sample_weight, training)
        if not training:
            return loss
        if not hasattr(y_pred, "shape") or y_pred.shape[-1] in (None, 1):
            raise ValueError(
                "`model` must have one output of shape (..., C), with two or "
                "more classes. Received: "
                f"{keras.tree.map_structure(lambda t: t.shape, y_pred)}. "
                "Give a yes-or-no classifier two outputs."
            )
        with self.no_trace():
            other = self.inner(x, training=True)
            loss = loss + self.task_loss(y, other, sample_weight)
            apart = self.divergence(y_pred, other, sample_weight)
        return loss + self.alpha * apart
