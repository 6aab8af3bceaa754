"""A model of several tasks whose weights are learned under `model.fit`.

N tasks.
"""

from collections.abc import Callable, Sequence

import keras
from keras import ops

from keras_moe.layers import checks
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.multitask.uncertainty import UncertaintyWeighting


class FunctionLoss(keras.losses.Loss):
    """A loss function, reduced over the batch as Keras's losses are."""

    def __init__(self, function: Callable):
        super().__init__()
        self.function = function

    def call(self, y_true, y_pred):
        """Returns the loss of each entry."""
        return self.function(y_true, y_pred)


@keras.saving.register_keras_serializable(package="keras_moe")
class UncertaintyWeightedModel(NamedArguments, keras.Model):
    """Trains a model with N outputs on the weighted sum of N losses, and
    learns the weights (Kendall, Gal & Cipolla 2018).

    ```python
    model = UncertaintyWeightedModel(
        two_headed, ["mse", "binary_crossentropy"],
        kinds=["regression", "classification"],
    )
    model.compile("adam", metrics=[["mae"], ["auc"]])  # no loss here
    model.fit(x, [prices, clicks])
    ```

    Args:
        model: a `keras.Model` with a list of N outputs. It is the same model
            before and after: predict with it, save it, export it.
        losses: N losses, as `compile` takes them.
        kinds: of `UncertaintyWeighting`.
        **kwargs: of `keras.Model`.

    Attributes:
        model: the model.
        weighting: the `UncertaintyWeighting`, with `log_variances`.

    Targets, and sample weights where there are any, are lists of N. Losses
    that layers add stay as they are.

    Raises:
        ValueError: where `compile` gets a loss, or the number of losses,
            kinds or targets is not that of the outputs.
    """

    def __init__(
        self,
        model: keras.Model,
        losses: Sequence,
        kinds: str | Sequence[str] = "regression",
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.model = checks.check_model("model", model)
        self.task_losses = [
            checks.check_loss("losses", loss)
            for loss in checks.check_list("losses", losses, "losses")
        ]
        if not self.task_losses:
            raise ValueError(
                "`losses` must hold one loss for each task. Received: "
                f"losses={losses!r}. Pass, for instance, ['mse', 'mae']."
            )
        self.weighting = UncertaintyWeighting(
            len(self.task_losses), kinds, name="weighting"
        )
        self.weighting.build()

    def compile(self, *args, **kwargs) -> None:
        """Configures training; takes no loss."""
        if kwargs.get("loss") is not None or len(args) > 1:
            raise ValueError(
                "`loss` must be left out of `compile`: the model has its "
                "losses. Received: a loss. Pass it as `losses` of "
                "UncertaintyWeightedModel."
            )
        super().compile(*args, **kwargs)

    def compile_from_config(self, config: dict) -> None:
        """Compiles as the saved model was; Keras asks for it."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built and self.optimizer is not None:
            self.optimizer.build(self.trainable_variables)

    def call(self, inputs, training=None, mask=None):
        """Returns the model's outputs."""
        return self.model(inputs, training=training, mask=mask)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the weighted sum of the N losses, and what layers add."""
        total = self.weighting(self.losses_of(y, y_pred, sample_weight))
        for loss in self.losses:
            total = total + loss
        return total

    def losses_of(self, y, y_pred, sample_weight=None) -> list:
        """Returns the N losses, not weighted."""
        number = len(self.task_losses)
        if sample_weight is None:
            sample_weight = [None] * number
        for name, value in (
            ("y", y),
            ("y_pred", y_pred),
            ("sample_weight", sample_weight),
        ):
            if not isinstance(value, (list, tuple)) or len(value) != number:
                raise ValueError(
                    f"`{name}` must be a list of {number}, one a task. "
                    f"Received: {type(value).__name__}. Pass lists in the "
                    "order of the model's outputs."
                )
        rows = zip(self.task_losses, y, y_pred, sample_weight, strict=True)
        return [self._loss_of(*row) for row in rows]

    def _loss_of(self, loss, y, y_pred, sample_weight):
        if not isinstance(loss, keras.losses.Loss):
            loss = FunctionLoss(loss)
        if len(y.shape) == len(y_pred.shape) - 1 and y_pred.shape[-1] == 1:
            y = ops.expand_dims(y, -1)
        return loss(y, y_pred, sample_weight=sample_weight)

    def get_config(self) -> dict:
        """Returns the arguments that build this model again."""
        return {
            **super().get_config(),
            "model": keras.saving.serialize_keras_object(self.model),
            "losses": [
                keras.losses.serialize(loss) for loss in self.task_losses
            ],
            "kinds": list(self.weighting.kinds),
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects=None):
        """Builds the model that `get_config` describes."""
        model = keras.saving.deserialize_keras_object(
            config["model"], custom_objects=custom_objects
        )
        losses = [keras.losses.get(loss) for loss in config["losses"]]
        return cls(**{**config, "model": model, "losses": losses})
