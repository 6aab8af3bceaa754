"""Model of several tasks that learns the weights of their losses.

N tasks.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_moe import checks
from keras_moe.layers.added_losses import in_floatx
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.multitask.uncertainty import UncertaintyWeighting
from keras_moe.layers.trainable_parts import TrainableParts
from keras_moe.types import Tensor


class FunctionLoss(keras.losses.Loss):
    """Reduces a loss function over the batch like Keras's losses."""

    def __init__(self, function: Callable[..., Tensor]):
        super().__init__()
        self.function = function

    def call(self, y_true: Tensor, y_pred: Tensor) -> Tensor:
        """Return the loss of each entry."""
        return self.function(y_true, y_pred)


@keras.saving.register_keras_serializable(package="keras_moe")
class UncertaintyWeightedModel(NamedArguments, TrainableParts, keras.Model):
    """Trains a model on the sum of N losses with learned weights.

    ```python
    model = UncertaintyWeightedModel(
        two_headed, ["mse", "binary_crossentropy"],
        kinds=["regression", "classification"],
    )
    model.compile("adam", metrics=[["mae"], ["auc"]])  # no loss here
    model.fit(x, [prices, clicks])
    ```

    Args:
        model: A `keras.Model` with a list or a dict of N outputs. It stays the
            same model: use it to predict, to save, and to export.
        losses: List of N losses, as `compile` accepts them, or a dict by the
            names of the outputs.
        kinds: Argument of `UncertaintyWeighting`, or a dict like `losses`.
            `"regression"` by default.
        **kwargs: Arguments of `keras.Model`.

    Attributes:
        model: The model.
        weighting: The `UncertaintyWeighting`, with `log_variances`.

    Targets and sample weights are lists of N, or dicts if `losses` is one. The
    weights of `weighting` are in the order of `losses`. Losses that layers add
    are not weighted.

    Raises:
        ValueError: If `compile` gets a loss, or if the number or the names of
            the losses, kinds, or targets are not those of the outputs.

    Reference: Kendall, Gal & Cipolla 2018, "Multi-Task Learning Using
    Uncertainty to Weigh Losses for Scene Geometry and Semantics".

    Example:

    ```python
    inputs = keras.Input((16,))
    price = keras.layers.Dense(1)(inputs)
    kind = keras.layers.Dense(3, activation="softmax")(inputs)
    model = keras_moe.UncertaintyWeightedModel(
        keras.Model(inputs, [price, kind]),
        losses=["mse", "sparse_categorical_crossentropy"],
        kinds=["regression", "classification"],
    )
    model.compile("adam")
    ```
    """

    def __init__(
        self,
        model: keras.Model,
        losses: Sequence[Any] | dict[str, Any],
        kinds: str | Sequence[str] | dict[str, str] = "regression",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.model = checks.check_model("model", model)
        self.task_names = list(losses) if isinstance(losses, dict) else None
        given = losses
        if isinstance(losses, dict):
            losses = list(losses.values())
        self.task_losses = [
            checks.check_loss("losses", loss)
            for loss in checks.check_list("losses", losses, "losses")
        ]
        if not self.task_losses:
            raise ValueError(
                "`losses` must hold one loss for each task. Received: "
                f"losses={given!r}. Pass, for instance, ['mse', 'mae']."
            )
        if isinstance(kinds, dict):
            kinds = self._ordered("kinds", kinds, len(losses))
        self.weighting = UncertaintyWeighting(
            len(self.task_losses), kinds, name="weighting"
        )
        self.weighting.build()

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Configure training, without a loss."""
        if kwargs.get("loss") is not None or len(args) > 1:
            raise ValueError(
                "`loss` must be left out of `compile`: the model has its own "
                "losses. Received: a loss. Pass it as `losses` of "
                "UncertaintyWeightedModel."
            )
        super().compile(*args, **kwargs)

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile like the saved model; Keras calls this function."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        """Return the outputs of the model."""
        return self.model(inputs, training=training, mask=mask)

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Tensor:
        """Return the weighted sum of the N losses, plus losses of layers."""
        weighted = self.weighting(self.losses_of(y, y_pred, sample_weight))
        total = in_floatx(weighted)
        for loss in self.losses:
            total = total + loss
        return total

    def losses_of(
        self, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> list[Tensor]:
        """Return the N losses without their weights."""
        number = len(self.task_losses)
        if sample_weight is None:
            sample_weight = [None] * number
        given = {"y": y, "y_pred": y_pred, "sample_weight": sample_weight}
        ordered = [self._ordered(*item, number) for item in given.items()]
        rows = zip(self.task_losses, *ordered, strict=True)
        return [self._loss_of(*row) for row in rows]

    def _ordered(self, name: str, value: Any, number: int) -> list[Any]:
        """Return a list or dict of N entries in the order of the losses."""
        names = self.task_names
        outputs = getattr(self.model, "output_names", None)
        if isinstance(value, (list, tuple)) and len(value) == number:
            if names is None or set(outputs or names) != set(names):
                return list(value)
            value = dict(zip(outputs or names, value, strict=True))
        if names and isinstance(value, dict) and set(value) == set(names):
            return [value[task] for task in names]
        wanted = (
            f"a list of {number}" if names is None else f"a dict of {names}"
        )
        keys = f" of {list(value)}" if isinstance(value, dict) else ""
        raise ValueError(
            f"`{name}` must be {wanted}, one entry per task. Received: "
            f"{type(value).__name__}{keys}. Pass lists in the order of the "
            "model's outputs, or dicts by name if `losses` is a dict."
        )

    def _loss_of(
        self, loss: Any, y: Tensor, y_pred: Tensor, sample_weight: Any
    ) -> Tensor:
        if not isinstance(loss, keras.losses.Loss):
            loss = FunctionLoss(loss)
        if len(y.shape) == len(y_pred.shape) - 1 and y_pred.shape[-1] == 1:
            y = ops.expand_dims(y, -1)
        return loss(y, y_pred, sample_weight=sample_weight)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this model again."""
        losses = [keras.losses.serialize(loss) for loss in self.task_losses]
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "losses": self._named(losses),
            "kinds": self._named(self.weighting.kinds),
        }

    def _named(self, values: Sequence[Any]) -> list[Any] | dict[str, Any]:
        """Return N values in the form of `losses`, a list or a dict."""
        if self.task_names is None:
            return list(values)
        return dict(zip(self.task_names, values, strict=True))

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        """Build the model that `get_config` describes."""
        model = keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        return cls(**{**config, "model": model})
