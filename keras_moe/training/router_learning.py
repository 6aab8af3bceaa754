"""Train routers with a smaller learning rate, or not at all."""

from collections.abc import Sequence
from typing import Any, Self

import keras
from keras import ops

from keras_moe import _keras, checks
from keras_moe.model_surgery.find import find_routers
from keras_moe.types import Tensor


def freeze_routers(model: keras.Model) -> None:
    """Make every router of a model not trainable.

    Compile the model after it, as after any change of `trainable`. Like Keras's
    `BatchNormalization`, a frozen router runs in inference mode: it has no
    jitter, no noise, and no losses, and its `expert_bias` does not change. The
    statistics of its block are still updated. To stop the training of routers
    without another compilation, see `RouterLearningRate`.

    Args:
        model: Built model.

    Raises:
        ValueError: If the model has no router.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras_moe.MoEBlock(4, 32, dropout=0.1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    keras_moe.training.freeze_routers(model)
    model.compile("adam", "sparse_categorical_crossentropy")
    ```
    """
    for router in find_routers(model):
        router.trainable = False


def unfreeze_routers(model: keras.Model) -> None:
    """Make every router of a model trainable again; see `freeze_routers`.

    Args:
        model: Built model.

    Raises:
        ValueError: If the model has no router.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras_moe.MoEBlock(4, 32, dropout=0.1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    keras_moe.training.freeze_routers(model)
    keras_moe.training.unfreeze_routers(model)
    ```
    """
    for router in find_routers(model):
        router.trainable = True


@keras.saving.register_keras_serializable(package="keras_moe")
class RouterLearningRate(keras.optimizers.Optimizer):
    """Train routers with `factor` times the learning rate of an optimizer.

    The step of the optimizer is scaled, not the gradient, whose scale Adam and
    similar optimizers normalize away: `new = (1 - factor) * old + factor *
    stepped`. The steps of Keras's optimizers but `Ftrl`, weight decay included,
    are proportional to the learning rate, so that this is a learning rate for
    the routers. Schedules, clipping over all weights, and loss scaling remain
    those of the optimizer.

    Setting `optimizer.factor = 0.0` between epochs, for instance in a callback,
    stops the training of routers without another compilation.

    Args:
        inner_optimizer: Keras optimizer, or its name.
        factor: float of 0 or above. 0 does not train routers, 1 changes
            nothing. Defaults to 0.1, a start for a trained model with new
            experts.
        name: str or None. Name of the optimizer. `None` (the default) derives
            it from the class name.

    Raises:
        ValueError: If an argument has a wrong type or is out of its range; if
            `inner_optimizer` has `use_ema`; or, in `build`, if no variable is a
            router's.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras_moe.MoEBlock(4, 32, dropout=0.1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    optimizer = keras_moe.training.RouterLearningRate("adam", factor=0.1)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    ```
    """

    def __init__(
        self,
        inner_optimizer: keras.optimizers.Optimizer | str,
        factor: float = 0.1,
        name: str | None = None,
    ):
        super().__init__(learning_rate=0.0, name=name)
        self.inner_optimizer = checks.check_optimizer(
            "inner_optimizer", inner_optimizer
        )
        if self.inner_optimizer.use_ema:
            raise ValueError(
                "`inner_optimizer` must not have `use_ema`: it would average "
                "the routers' steps before they are scaled. Received: "
                f"{type(self.inner_optimizer).__name__} with use_ema=True. "
                "Leave `use_ema` out."
            )
        factor = checks.check_weight("factor", factor)
        self._factor = self.add_variable(
            shape=(),
            initializer=keras.initializers.Constant(factor),
            aggregation="only_first_replica",
            name="factor",
        )

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Create the optimizer's state for trainable variables."""
        if not any(getattr(v, "of_router", False) for v in variables):
            raise ValueError(
                "The trainable variables must include a router's. Received: "
                f"{len(variables)} variables, none of a router. Leave "
                "RouterLearningRate out for a dense model, or unfreeze the "
                "routers."
            )
        self.inner_optimizer.build(variables)
        super().build(variables)

    def apply(
        self,
        grads: Sequence[Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Apply the inner optimizer, then scale the routers' steps."""
        if not self.built:
            self.build(list(trainable_variables or ()))
        variables = _keras.variables_trained_by(self)
        of_routers = [v for v in variables if getattr(v, "of_router", 0)]
        before = [ops.copy(v.value) for v in of_routers]
        self.inner_optimizer.apply(grads, trainable_variables)
        for variable, old in zip(of_routers, before, strict=True):
            factor = ops.cast(self._factor, old.dtype)
            variable.assign((1 - factor) * old + factor * variable.value)

    @property
    def factor(self) -> Tensor:
        """The factor, a variable. It can be set to a number."""
        return self._factor

    @factor.setter
    def factor(self, value: float) -> None:
        self._factor.assign(checks.check_weight("factor", value))

    @property
    def variables(self) -> list[keras.Variable]:
        """This optimizer's variables and those of the inner optimizer."""
        return [*super().variables, *self.inner_optimizer.variables]

    @property
    def learning_rate(self) -> Any:
        """The learning rate of the inner optimizer. It can be set."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        self.inner_optimizer.learning_rate = value

    @property
    def iterations(self) -> keras.Variable:
        """The number of steps of the inner optimizer."""
        return self.inner_optimizer.iterations

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Scale a loss as the inner optimizer does."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(
        self, var_list: Sequence[keras.Variable]
    ) -> None:
        """Finalize variables as the inner optimizer does, after training."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this optimizer again."""
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {
            "name": self.name,
            "inner_optimizer": inner,
            "factor": float(self._factor.numpy()),
        }

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        """Build the optimizer that `get_config` describes."""
        inner = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        return cls(**{**config, "inner_optimizer": inner})
