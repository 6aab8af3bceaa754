"""Pretraining by guessing tokens that were hidden.

B sequences, S sequence length, D hidden_dim, V vocabulary_size.
"""

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
    """Hides tokens as BERT does (Devlin et al. 2019, section 3.1).

    Of the tokens that are chosen 80 % become the mask token, 10 % a random
    one and 10 % stay as they are.

    Args:
        token_ids: int32 `(B, S)`; 0 is padding and never chosen.
        draws: each `(B, S)`: uniform numbers in 0 ... 1 that choose, those
            that say what becomes of a chosen token, and random token ids.
        mask_token_id: id of the mask token.
        mask_rate: share of the tokens that are chosen.

    Returns:
        The ids `(B, S)` with tokens hidden, and bool `(B, S)`, the chosen.
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
    """Pretrains a trunk on token ids alone: `fit(token_ids)`.

    Masked language modelling (Devlin et al. 2019, "BERT", section 3.1): the
    trunk sees the ids with some hidden, a linear head guesses them, and the
    loss is the mean cross-entropy over the tokens that were chosen, plus what
    layers add. Compile it with an optimizer only. The trunk shares its weights
    with any model that is built on it.

    Args:
        trunk: a model from int ids `(B, S)` to `(B, S, D)`.
        vocabulary_size: V, 2 or more; the trunk's ids and `mask_token_id` are
            below it.
        mask_token_id: id that stands for a hidden token, 1 to V - 1.
        mask_rate: share of the tokens that are chosen, in 0 < rate <= 1.
        seed: int, for the choice.
        **kwargs: of `keras.Model`.

    Call arguments:
        inputs: int `(B, S)`; 0 is padding.

    Returns:
        The logits `(B, S, V)` of ids with some hidden, and bool `(B, S)`,
        which were chosen.

    Raises:
        ValueError: for an argument out of its range.
    """

    arguments = ("vocabulary_size", "mask_token_id", "mask_rate", "seed")
    wraps = "trunk"

    def __init__(
        self,
        trunk,
        vocabulary_size: int,
        mask_token_id: int,
        mask_rate: float = 0.15,
        seed: int | None = None,
        **kwargs,
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
                f"{vocabulary_size}. Count the mask token in, in the trunk's "
                "embedding too."
            )
        self.mask_rate = checks.check_above("mask_rate", mask_rate, 0, 1)
        self.seed = checks.check_seed(seed)
        self.seed_generator = keras.random.SeedGenerator(self.seed)
        self.head = keras.layers.Dense(
            vocabulary_size, dtype="float32", name="head"
        )

    def build(self, input_shape: Shape) -> None:
        """Builds trunk and head for ids `(B, S)`."""
        super().build(input_shape)
        self.head.build(self.inner.compute_output_shape(input_shape))

    def call(self, inputs: Tensor, training=None):
        """Hides tokens and guesses them; see the class."""
        token_ids = ops.cast(inputs, "int32")
        token_ids, chosen = hide_tokens(
            token_ids,
            self._draw(ops.shape(token_ids)),
            self.mask_token_id,
            self.mask_rate,
        )
        return self.head(self.inner(token_ids, training=training)), chosen

    def _draw(self, shape):
        """Numbers that choose, numbers that decide, and ids 1 ... V-1."""
        seed = self.seed_generator
        choose, fate = (
            keras.random.uniform(shape, dtype="float32", seed=seed)
            for _ in range(2)
        )
        ids = keras.random.randint(shape, 1, self.vocabulary_size, seed=seed)
        return choose, fate, ids

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the scalar loss of a batch; see the class."""
        logits, chosen = y_pred
        loss = keras.losses.sparse_categorical_crossentropy(
            ops.cast(x, "int32"), logits, from_logits=True
        )
        chosen = ops.cast(chosen, loss.dtype)
        count = ops.maximum(ops.sum(chosen), 1)
        mean = ops.sum(loss * chosen) / count
        return in_floatx(mean) + sum(self.losses)
