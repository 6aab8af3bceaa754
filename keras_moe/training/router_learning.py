"""Routers that learn more slowly than the rest, or not at all."""

import keras
from keras import ops

from keras_moe import _keras, checks
from keras_moe.model_surgery.find import find_routers
from keras_moe.types import Tensor


def freeze_routers(model: keras.Model) -> None:
    """Makes every router of a model not trainable.

    As with any `trainable`, compile the model after it. As with Keras's
    `BatchNormalization`, a frozen router runs in inference mode: no jitter,
    no noise, no losses, and `expert_bias` stands still. The statistics of its
    block are still counted. To hold routers still without another
    compilation, see `RouterLearningRate`.

    Args:
        model: a built model.

    Raises:
        ValueError: for a model without routers.
    """
    for router in find_routers(model):
        router.trainable = False


def unfreeze_routers(model: keras.Model) -> None:
    """Makes every router of a model trainable again; see `freeze_routers`."""
    for router in find_routers(model):
        router.trainable = True


@keras.saving.register_keras_serializable(package="keras_moe")
class RouterLearningRate(keras.optimizers.Optimizer):
    """Gives routers `factor` times the learning rate of an optimizer.

    What it scales is the step that the optimizer made, not the gradient,
    which Adam and its like would scale back: `new = (1 - factor) * old +
    factor * stepped`. The steps of Keras's optimizers, weight decay included,
    are proportional to the learning rate (`Ftrl`'s are not), so that this is
    a learning rate of its own, and schedules, clipping over all weights and
    loss scaling stay the optimizer's.

    `optimizer.factor = 0.0` between epochs, as in a callback, holds routers
    still without another compilation.

    Args:
        inner_optimizer: a Keras optimizer or its name.
        factor: 0 or above; 0 holds routers still, 1 changes nothing. 0.1 is a
            start where a trained model gets new experts.
        name: of the optimizer.

    Raises:
        ValueError: for an argument out of its range, an optimizer with
            `use_ema`, and weights of which none is a router's.
    """

    def __init__(
        self, inner_optimizer, factor: float = 0.1, name: str | None = None
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

    def build(self, variables) -> None:
        """Creates the optimizer's state for trainable variables."""
        if not any(getattr(v, "of_router", False) for v in variables):
            raise ValueError(
                "The trainable variables must include a router's. Received: "
                f"{len(variables)} variables, none of a router. Leave "
                "RouterLearningRate out for a dense model, or unfreeze the "
                "routers."
            )
        self.inner_optimizer.build(variables)
        super().build(variables)

    def apply(self, grads, trainable_variables=None) -> None:
        """Lets the optimizer step, then shortens the routers' steps."""
        if not self.built:
            self.build(list(trainable_variables))
        variables = _keras.variables_trained_by(self)
        of_routers = [v for v in variables if getattr(v, "of_router", 0)]
        before = [ops.copy(v.value) for v in of_routers]
        self.inner_optimizer.apply(grads, trainable_variables)
        for variable, old in zip(of_routers, before, strict=True):
            factor = ops.cast(self._factor, old.dtype)
            variable.assign((1 - factor) * old + factor * variable.value)

    @property
    def factor(self) -> Tensor:
        """The factor, a variable; it may be set to a number."""
        return self._factor

    @factor.setter
    def factor(self, value: float):
        self._factor.assign(checks.check_weight("factor", value))

    @property
    def variables(self) -> list:
        """This optimizer's variables and the inner one's."""
        return super().variables + self.inner_optimizer.variables

    @property
    def learning_rate(self):
        """The inner optimizer's; it may be set."""
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.inner_optimizer.learning_rate = value

    @property
    def iterations(self):
        """The inner optimizer's count of steps."""
        return self.inner_optimizer.iterations

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Scales a loss as the inner optimizer does."""
        return self.inner_optimizer.scale_loss(loss)

    def finalize_variable_values(self, var_list) -> None:
        """Does at the end of training what the inner optimizer does."""
        self.inner_optimizer.finalize_variable_values(var_list)

    def get_config(self) -> dict:
        """Returns the arguments that build this optimizer again."""
        inner = keras.saving.serialize_keras_object(self.inner_optimizer)
        return {
            "name": self.name,
            "inner_optimizer": inner,
            "factor": float(self._factor.numpy()),
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None):
        """Builds the optimizer that `get_config` describes."""
        inner = keras.saving.deserialize_keras_object(
            config["inner_optimizer"], custom_objects=custom_objects
        )
        return cls(**{**config, "inner_optimizer": inner})
