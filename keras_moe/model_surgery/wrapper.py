"""A model around another model: its inputs, its outputs, another loss."""

import contextlib

import keras

from keras_moe import _keras, checks
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.trainable_parts import TrainableParts
from keras_moe.types import Shape, Tensor


class Wrapper(NamedArguments, TrainableParts, keras.Model):
    """Base of models that only change how another one is trained.

    Args:
        model: a Keras model; it shares its weights with the wrapper and can
            be used, saved and exported by itself, as `inner`.
        **kwargs: of `keras.Model`.

    Raises:
        ValueError: for a model that is such a wrapper itself.
    """

    arguments: tuple[str, ...] = ()  # attributes that `get_config` saves
    wraps = "model"  # what `inner` is called as an argument

    def __init__(self, model, /, **kwargs):
        super().__init__(**kwargs)
        if isinstance(model, Wrapper):
            raise ValueError(
                f"`{self.wraps}` must not be a {type(model).__name__}: its "
                "loss would be left out. Received: "
                f"{self.wraps}={model!r}. Pass its `inner`, and train with "
                "one after the other."
            )
        self.inner = checks.check_is_a(
            self.wraps,
            model,
            keras.layers.Layer,
            "a Keras model or layer",
            "Pass the object, not its name or its class.",
        )

    def build(self, input_shape: Shape) -> None:
        """Builds the model inside, where it is not built yet."""
        if not self.inner.built:
            self.inner.build(input_shape)

    def call(self, inputs, training=None):
        """Returns what the model inside does."""
        return self.inner(inputs, training=training)

    def task_loss(self, y, y_pred, sample_weight=None) -> Tensor:
        """Returns the compiled loss alone, without what layers added."""
        compiled = _keras.compiled_loss_of(self)
        if compiled is None:
            raise ValueError(
                f"{type(self).__name__} must be compiled with a `loss`: it "
                "computes it a second time. Received: loss=None. Pass "
                "`loss` to `compile`."
            )
        return compiled(y, y_pred, sample_weight)

    @contextlib.contextmanager
    def no_trace(self):
        """Inside, weights, seeds, statistics and losses of layers stay.

        A pass in here draws what the next pass outside would draw, and what it
        assigns or adds as a loss is forgotten. Gradients flow as always.
        """
        state = [(v, v.value) for v in self.variables]
        with keras.StatelessScope(state_mapping=state):
            yield

    def get_config(self) -> dict:
        """Returns the arguments that build this model again."""
        own = {name: getattr(self, name) for name in self.arguments}
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), self.wraps: inner, **own}

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None):
        """Builds the model that `get_config` describes."""
        inner = keras.saving.deserialize_keras_object(
            config[cls.wraps], custom_objects=custom_objects
        )
        return cls(**{**config, cls.wraps: inner})  # type: ignore[call-arg]
