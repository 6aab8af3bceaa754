"""Pretrain by recognizing the second view of an example among others.

B batch, S sequence length, D hidden_dim.
"""

from typing import Any

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
    """Return the loss of SimCSE, the mean over the batch.

    `-log(exp(sim(h_i, h'_i) / t) / sum_j exp(sim(h_i, h'_j) / t))` with the
    cosine similarity `sim`.

    Reference: Gao et al. 2021, eq. 1.

    Args:
        first: float `(B, D)`. h, the first view of each example.
        second: float `(B, D)`. h', the second view.
        temperature: float above 0. t.

    Returns:
        float32 scalar.

    Raises:
        ValueError: If `temperature` is a number of 0 or below, or not finite.

    Example:

    ```python
    first, second = keras.random.normal((2, 8, 16))
    loss = keras_moe.training.contrastive_loss(first, second, temperature=0.05)
    ```
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
    """Pretrain a trunk without labels, by `fit(token_ids)` (SimCSE).

    Each example passes through the trunk twice, in one batch of 2 B, and the
    two views differ by dropout. Each view is trained to be closer to the other
    view of its example than to those of other examples. The trunk needs
    dropout; in evaluation, without dropout, both views are equal. Compile this
    model with an optimizer only. The trunk shares its weights with any model
    that is built on it.

    Reference: Gao et al. 2021, "SimCSE: Simple Contrastive Learning of Sentence
    Embeddings", eq. 1.

    Args:
        trunk: Model from `(B, ...)` to `(B, D)` or `(B, S, D)`. Of the latter,
            the mean over S is taken, for integer inputs `(B, S)` without
            padding, whose id is 0.
        temperature: float above 0. t. Defaults to 0.05, as in the paper.
        **kwargs: Arguments of `keras.Model`.

    Call arguments:
        inputs: Tensor `(B, ...)`.

    Returns:
        A tuple of both views, each `(B, D)`.

    Raises:
        ValueError: If `temperature` is not a finite number above 0; or, in a
            call, if the outputs of `trunk` have another rank.

    Example:

    ```python
    trunk = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            keras.layers.Embedding(100, 16),
            keras_moe.MoEBlock(4, 32, dropout=0.1),
        ]
    )
    model = keras_moe.training.ContrastiveModel(trunk)
    model.compile("adam")
    model.fit(np.random.randint(1, 100, size=(32, 12)))
    ```
    """

    arguments = ("temperature",)
    wraps = "trunk"

    def __init__(
        self, trunk: keras.Model, temperature: float = 0.05, **kwargs: Any
    ):
        super().__init__(trunk, **kwargs)
        self.temperature = checks.check_above(
            "temperature", temperature, 0, float("inf")
        )

    def call(
        self, inputs: Tensor, training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed each example twice; see the class."""
        twice = ops.concatenate([inputs, inputs], axis=0)
        outputs = self._pooled(self.inner(twice, training=training), twice)
        size = ops.shape(inputs)[0]
        return outputs[:size], outputs[size:]

    def _pooled(self, outputs: Tensor, inputs: Tensor) -> Tensor:
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
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the scalar loss of a batch, with what layers add."""
        one, other = y_pred
        loss = contrastive_loss(one, other, self.temperature)
        return in_floatx(loss) + sum(self.losses)
