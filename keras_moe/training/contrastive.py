"""Pretraining by telling an example's two views from everybody else's.

B batch, S sequence length, D hidden_dim.
"""

import keras
from keras import ops

from keras_moe import checks
from keras_moe.checks import INFINITY, is_static
from keras_moe.layers.added_losses import in_floatx
from keras_moe.model_surgery.wrapper import Wrapper
from keras_moe.types import Tensor


def contrastive_loss(
    first: Tensor, second: Tensor, temperature: float
) -> Tensor:
    """SimCSE's loss (Gao et al. 2021, eq. 1), the mean over the batch.

    `-log(exp(sim(h_i, h'_i) / t) / sum_j exp(sim(h_i, h'_j) / t))`, sim being
    the cosine.

    Args:
        first: `(B, D)`, h.
        second: `(B, D)`, h'.
        temperature: t.

    Returns:
        float32 scalar.
    """
    if is_static(temperature):
        checks.check_above("temperature", temperature, 0, INFINITY)
    first, second = (
        ops.normalize(ops.cast(x, "float32"), axis=-1) for x in (first, second)
    )
    similarity = ops.matmul(first, ops.transpose(second)) / temperature
    own = ops.sum(first * second, axis=-1) / temperature
    return ops.mean(ops.logsumexp(similarity, axis=-1) - own)


@keras.saving.register_keras_serializable(package="keras_moe")
class ContrastiveModel(Wrapper):
    """Pretrains a trunk on inputs alone: `fit(token_ids)`.

    Unsupervised SimCSE (Gao et al. 2021, "SimCSE: Simple Contrastive Learning
    of Sentence Embeddings", eq. 1): each example goes through the trunk twice,
    in one batch of 2 B, and what tells the two apart is dropout. Each must be
    nearer to its other view than to any other example's. The trunk needs
    dropout; in evaluation, without it, the two are one. Compile it with an
    optimizer only; the trunk shares its weights with any model built on it.

    Args:
        trunk: a model from `(B, ...)` to `(B, D)`, or to `(B, S, D)`, of which
            the mean over S is taken: for integer inputs `(B, S)` over those
            that are not 0, the padding.
        temperature: t, above 0. 0.05 is the paper's.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: one tensor `(B, ...)`.

    Returns:
        Both views, each `(B, D)`.

    Raises:
        ValueError: for a temperature out of its range, or a trunk with outputs
            of another rank.
    """

    arguments = ("temperature",)
    wraps = "trunk"

    def __init__(self, trunk, temperature: float = 0.05, **kwargs):
        super().__init__(trunk, **kwargs)
        self.temperature = checks.check_above(
            "temperature", temperature, 0, float("inf")
        )

    def call(self, inputs: Tensor, training=None):
        """Embeds each example twice; see the class."""
        twice = ops.concatenate([inputs, inputs], axis=0)
        outputs = self._pooled(self.inner(twice, training=training), twice)
        size = ops.shape(inputs)[0]
        return outputs[:size], outputs[size:]

    def _pooled(self, outputs, inputs):
        if len(outputs.shape) == 2:
            return outputs
        if len(outputs.shape) != 3:
            raise ValueError(
                "`trunk` must return (batch, hidden_dim) or (batch, length, "
                f"hidden_dim). Received: shape {tuple(outputs.shape)}. Pool "
                "its outputs."
            )
        are_ids = "int" in keras.backend.standardize_dtype(inputs.dtype)
        if not are_ids or len(inputs.shape) != 2:
            return ops.mean(outputs, axis=1)
        real = ops.cast(ops.not_equal(inputs, 0), outputs.dtype)[..., None]
        count = ops.maximum(ops.sum(real, axis=1), 1.0)
        return ops.sum(outputs * real, axis=1) / count

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the scalar loss of a batch, plus what layers add."""
        one, other = y_pred
        loss = contrastive_loss(one, other, self.temperature)
        return in_floatx(loss) + sum(self.losses)
