"""Combine several outputs into one by votes, means, or a learned function.

B batch, M members, C classes (or values); `...` are axes in between, if any.
The scale of the members' outputs is `"probabilities"`, `"logits"`, or
`"values"` (regression). With C = 1, an output is the probability (or logit) of
the second of two classes. Everything is computed in float32.
"""

from typing import Any

import keras
from keras import ops

from keras_moe import checks
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.types import Shape, Tensor

EPSILON = 1e-7


class Combiner(keras.layers.Layer):
    """Combine a list of M outputs `(B, ..., C)` into one of that shape.

    Args:
        scale: str. `"probabilities"`, `"logits"`, or `"values"`.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(self, scale: str, **kwargs: Any):
        super().__init__(dtype="float32", **kwargs)
        self.scale = scale

    def call(self, outputs: list[Tensor]) -> Tensor:
        """Stack the outputs to `(B, ..., M, C)` and combine them."""
        return self.combine(ops.stack(outputs, axis=-2))

    def combine(self, stacked: Tensor) -> Tensor:
        """Return the mean of the probabilities (or values)."""
        return ops.mean(to_probabilities(stacked, self.scale), axis=-2)


class HardVote(Combiner):
    """Return the share of the members that vote for each class."""

    def combine(self, stacked: Tensor) -> Tensor:
        """Count one vote per member, for the first of its largest outputs."""
        num_classes = stacked.shape[-1]
        if num_classes == 1:
            threshold = 0.0 if self.scale == "logits" else 0.5
            votes = ops.greater(stacked, threshold)
        else:
            vote = ops.argmax(stacked, axis=-1, keepdims=True)
            votes = ops.equal(vote, ops.arange(num_classes, dtype=vote.dtype))
        return ops.mean(ops.cast(votes, "float32"), axis=-2)


class Median(Combiner):
    """Return the elementwise median; of probabilities, divided by its sum."""

    def combine(self, stacked: Tensor) -> Tensor:
        """Return the middle output, or the mean of the middle two."""
        members = to_probabilities(stacked, self.scale)
        ordered = ops.sort(members, axis=-2)
        low, high = (stacked.shape[-2] - 1) // 2, stacked.shape[-2] // 2
        median = (ordered[..., low, :] + ordered[..., high, :]) / 2
        if self.scale == "values" or stacked.shape[-1] == 1:
            return median
        total = ops.sum(median, axis=-1, keepdims=True)
        some = ops.greater(total, 0)
        return ops.where(
            some, median / ops.where(some, total, 1.0), ops.mean(members, -2)
        )


class WeightedMean(Combiner):
    """Return a mean with learned convex weights, a softmax of logits `(M,)`."""

    def build(self, input_shape: list[Shape]) -> None:
        """Create the logits, all equal, so that it starts as the mean."""
        self.logits = self.add_weight(
            name="logits", shape=(len(input_shape),), initializer="zeros"
        )
        self.built = True

    def member_weights(self) -> Tensor:
        """Return the weights `(M,)`, which are above 0 and sum to 1."""
        return ops.exp(ops.log_softmax(self.logits))

    def combine(self, stacked: Tensor) -> Tensor:
        """Return the weighted mean of the probabilities (or values)."""
        members = to_probabilities(stacked, self.scale)
        return ops.sum(members * self.member_weights()[:, None], axis=-2)


class Stacking(Combiner):
    """Apply a model to the concatenated outputs `(B, ..., M * C)`.

    Args:
        meta_model: Keras model or layer that takes such inputs.
        scale: str. Scale of the members' outputs. Logits are turned into
            probabilities.
        **kwargs: Arguments of `keras.layers.Layer`.
    """

    def __init__(
        self, meta_model: keras.layers.Layer, scale: str, **kwargs: Any
    ):
        super().__init__(scale, **kwargs)
        self.meta_model = meta_model

    def build(self, input_shape: list[Shape]) -> None:
        """Build the meta model if it is not built yet."""
        if not self.meta_model.built:
            width = sum(shape[-1] or 0 for shape in input_shape)
            self.meta_model.build((*input_shape[0][:-1], width))
        self.built = True

    def call(
        self, outputs: list[Tensor], training: bool | None = None
    ) -> Tensor:
        """Return the output of the meta model for M outputs `(B, ..., C)`."""
        members = [to_probabilities(x, self.scale) for x in outputs]
        features = ops.concatenate(members, axis=-1)
        takes_training = isinstance(self.meta_model, keras.Model)
        options = {"training": training} if takes_training else {}
        return self.meta_model(features, **options)


@keras.saving.register_keras_serializable(package="keras_moe")
class StackingHead(NamedArguments, keras.layers.Layer):
    """Return the mean of the members with a learned linear correction.

    For values, it is `mean + Dense(values)`. For probabilities, it is
    `softmax(log(mean) + Dense(log(probabilities)))`, or with one column the
    same with sigmoid and log-odds. The kernel of the `Dense`, `(M * C, C)`,
    starts at zero, so that the head starts as the mean; a regularizer keeps it
    close to the mean.

    Args:
        num_members: Positive int. M.
        regression: bool. Whether the outputs of the members are values.
            `False` (the default) means probabilities.
        kernel_regularizer: Keras regularizer of the kernel, or None. `None`
            (the default) means no regularization.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        features: float `(..., M * C)`. Concatenated outputs of the members.

    Returns:
        float `(..., C)`.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range, or
            if `num_members` does not divide the width of the inputs.

    Example:

    ```python
    def network():
        return keras.Sequential(
            [keras.Input((16,)), keras.layers.Dense(3, activation="softmax")]
        )


    head = keras_moe.ensemble.StackingHead(2, kernel_regularizer="l2")
    ensemble = keras_moe.ensemble.Ensemble(
        [network(), network()], "stacking", meta_model=head
    )
    ```
    """

    def __init__(
        self,
        num_members: int,
        regression: bool = False,
        kernel_regularizer: Any = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.num_members = checks.check_positive_int("num_members", num_members)
        self.regression = checks.check_bool("regression", regression)
        self.kernel_regularizer = checks.check_regularizer(
            "kernel_regularizer", kernel_regularizer
        )

    def build(self, input_shape: Shape) -> None:
        """Create the correction for inputs `(..., M * C)`."""
        width = input_shape[-1]
        if width is None or width % self.num_members:
            raise ValueError(
                "`num_members` must divide the last dimension of the inputs, "
                f"members times classes. Received: num_members="
                f"{self.num_members}, inputs of shape {tuple(input_shape)}. "
                "Pass the number of models in the ensemble."
            )
        self.correction = keras.layers.Dense(
            width // self.num_members,
            kernel_initializer="zeros",
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name="correction",
        )
        self.correction.build(input_shape)
        self.built = True

    def call(self, features: Tensor) -> Tensor:
        """Return the corrected mean; see the class."""
        members = ops.split(features, self.num_members, axis=-1)
        mean = sum(members[1:], members[0]) / self.num_members
        if self.regression:
            return mean + self.correction(features)
        score = _log_odds if mean.shape[-1] == 1 else _log
        logits = score(mean) + self.correction(score(features))
        return to_probabilities(logits, "logits")

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Return `(..., C)`."""
        width = input_shape[-1]
        return (*input_shape[:-1], width and width // self.num_members)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this layer again."""
        regularizer = keras.regularizers.serialize(self.kernel_regularizer)
        return {
            **super().get_config(),
            "num_members": self.num_members,
            "regression": self.regression,
            "kernel_regularizer": regularizer,
        }


def to_probabilities(outputs: Tensor, scale: str) -> Tensor:
    """Return outputs `(..., C)`, with logits turned into probabilities."""
    if scale != "logits":
        return outputs
    if outputs.shape[-1] == 1:
        return ops.sigmoid(outputs)
    return ops.softmax(outputs, axis=-1)


def _log(probabilities: Tensor) -> Tensor:
    return ops.log(ops.maximum(probabilities, EPSILON))


def _log_odds(probabilities: Tensor) -> Tensor:
    return _log(probabilities) - _log(1 - probabilities)
