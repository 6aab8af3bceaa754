"""Pretrain by predicting masked tokens.

B sequences, S sequence length, D hidden_dim, V vocabulary_size.
"""

from typing import Any

import keras
from keras import ops

from keras_moe import checks
from keras_moe.layers.added_losses import in_floatx
from keras_moe.model_surgery.wrapper import Wrapper
from keras_moe.types import Shape, Tensor


def hide_tokens(
    token_ids: Tensor,
    draws: tuple[Tensor, Tensor, Tensor],
    mask_token_id: int,
    mask_rate: float,
) -> tuple[Tensor, Tensor]:
    """Mask tokens as BERT does (Devlin et al. 2019, section 3.1).

    Of the chosen tokens, 80 % are replaced by the mask token, 10 % by a random
    token, and 10 % do not change.

    Args:
        token_ids: int32 `(B, S)`. 0 is padding, which is never chosen.
        draws: Three tensors `(B, S)`: uniform numbers in 0 ... 1 that choose
            tokens, uniform numbers that choose the replacement, and random
            token ids.
        mask_token_id: int of 0 or above. Id of the mask token.
        mask_rate: float in 0 < rate <= 1. Expected share of the chosen tokens.

    Returns:
        The ids `(B, S)` with masked tokens, and bool `(B, S)`, True for the
        chosen tokens.

    Raises:
        ValueError: If `mask_token_id` or `mask_rate` is out of its range.

    Example:

    ```python
    token_ids = np.array([[5, 8, 2, 0]], "int32")
    draws = np.random.uniform(size=(2, 1, 4))
    random_ids = np.random.randint(1, 100, size=(1, 4))
    masked, chosen = keras_moe.training.hide_tokens(
        token_ids, (*draws, random_ids), mask_token_id=99, mask_rate=0.15
    )
    ```
    """
    checks.check_count("mask_token_id", mask_token_id)
    checks.check_above("mask_rate", mask_rate, 0, 1)
    choose, fate, random_ids = draws
    chosen = ops.logical_and(choose < mask_rate, ops.not_equal(token_ids, 0))
    hidden = ops.where(
        fate < 0.8,
        ops.full_like(token_ids, mask_token_id),
        ops.where(fate < 0.9, ops.cast(random_ids, token_ids.dtype), token_ids),
    )
    return ops.where(chosen, hidden, token_ids), chosen


@keras.saving.register_keras_serializable(package="keras_moe")
class MaskedTokenModel(Wrapper):
    """Pretrain a trunk without labels, by `fit(token_ids)` (BERT).

    This is masked language modeling: the trunk gets ids of which some are
    masked, a linear head predicts the original ids, and the loss is the mean
    cross-entropy over the chosen tokens, plus the losses that layers add.
    Compile this model with an optimizer only. The trunk shares its weights with
    any model that is built on it.

    Reference: Devlin et al. 2019, "BERT", section 3.1.

    Args:
        trunk: Model from int ids `(B, S)` to `(B, S, D)`.
        vocabulary_size: int above 1. V, larger than all ids of the data and
            than `mask_token_id`.
        mask_token_id: int in 1 ... V - 1. Id of the mask token.
        mask_rate: float in 0 < rate <= 1. Expected share of the chosen tokens.
            Defaults to 0.15.
        seed: int or None. Seed of the choice. `None` (the default) draws one.
        **kwargs: Arguments of `keras.Model`.

    Call arguments:
        inputs: int `(B, S)`. 0 is padding.

    Returns:
        A tuple of the logits `(B, S, V)` and bool `(B, S)`, True for the chosen
        tokens.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range.

    Example:

    ```python
    trunk = keras.Sequential(
        [
            keras.Input((12,), dtype="int32"),
            keras.layers.Embedding(100, 16),
            keras_moe.MoEBlock(4, 32),
        ]
    )
    model = keras_moe.training.MaskedTokenModel(
        trunk, vocabulary_size=100, mask_token_id=99
    )
    model.compile("adam")
    model.fit(np.random.randint(1, 99, size=(32, 12)))
    ```
    """

    arguments = ("vocabulary_size", "mask_token_id", "mask_rate", "seed")
    wraps = "trunk"

    def __init__(
        self,
        trunk: keras.Model,
        vocabulary_size: int,
        mask_token_id: int,
        mask_rate: float = 0.15,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(trunk, **kwargs)
        self.vocabulary_size = checks.check_positive_int(
            "vocabulary_size", vocabulary_size
        )
        self.mask_token_id = checks.check_positive_int(
            "mask_token_id", mask_token_id
        )
        if mask_token_id >= vocabulary_size:
            raise ValueError(
                "`mask_token_id` must be below `vocabulary_size`. Received: "
                f"mask_token_id={mask_token_id}, vocabulary_size="
                f"{vocabulary_size}. Include the mask token in the vocabulary, "
                "also in the trunk's embedding."
            )
        self.mask_rate = checks.check_above("mask_rate", mask_rate, 0, 1)
        self.seed = checks.check_seed(seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.head = keras.layers.Dense(
            vocabulary_size, dtype="float32", name="head"
        )

    def build(self, input_shape: Shape) -> None:
        """Build trunk and head for ids `(B, S)`."""
        super().build(input_shape)
        self.head.build(self.inner.compute_output_shape(input_shape))

    def call(
        self, inputs: Tensor, training: bool | None = None
    ) -> tuple[Tensor, Tensor]:
        """Mask tokens and predict them; see the class."""
        token_ids = ops.cast(inputs, "int32")
        token_ids, chosen = hide_tokens(
            token_ids,
            self._draw(ops.shape(token_ids)),
            self.mask_token_id,
            self.mask_rate,
        )
        return self.head(self.inner(token_ids, training=training)), chosen

    def _draw(self, shape: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the draws of `hide_tokens`, with ids in 1 ... V - 1."""
        seed = self.seed_generator
        choose, fate = (
            keras.random.uniform(shape, dtype="float32", seed=seed)
            for _ in range(2)
        )
        ids = keras.random.randint(shape, 1, self.vocabulary_size, seed=seed)
        return choose, fate, ids

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the scalar loss of a batch; see the class."""
        logits, chosen = y_pred
        loss = keras.losses.sparse_categorical_crossentropy(
            ops.cast(x, "int32"), logits, from_logits=True
        )
        chosen = ops.cast(chosen, loss.dtype)
        count = ops.maximum(ops.sum(chosen), 1)
        mean = ops.sum(loss * chosen) / count
        return in_floatx(mean) + sum(self.losses)
