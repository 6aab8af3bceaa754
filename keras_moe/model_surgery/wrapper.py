"""A model around another model, with the same calls and another loss."""

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import keras

from keras_moe import _keras, checks
from keras_moe.layers.argument_names import NamedArguments
from keras_moe.layers.trainable_parts import TrainableParts
from keras_moe.types import Shape, Tensor


class Wrapper(NamedArguments, TrainableParts, keras.Model):
    """Base of models that only change how another model is trained.

    Args:
        model: Keras model or layer. It shares its weights with the wrapper,
            and is used, saved, and exported by itself as `inner`.
        **kwargs: Arguments of `keras.Model`.

    Raises:
        ValueError: If `model` is no Keras layer, or is a `Wrapper` itself.
    """

    arguments: tuple[str, ...] = ()
    """Attributes that `get_config` saves."""

    wraps = "model"
    """Name of the argument that becomes `inner`."""

    def __init__(self, model: keras.layers.Layer, /, **kwargs: Any):
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
        """Build the model inside if it is not built yet."""
        if not self.inner.built:
            self.inner.build(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the outputs of the model inside."""
        return self.inner(inputs, training=training)

    def task_loss(
        self, y: Any, y_pred: Any, sample_weight: Any = None
    ) -> Tensor:
        """Return the compiled loss alone, without what layers added."""
        compiled = _keras.compiled_loss_of(self)
        if compiled is None:
            raise ValueError(
                f"{type(self).__name__} must be compiled with a `loss`: it "
                "computes it a second time. Received: loss=None. Pass "
                "`loss` to `compile`."
            )
        return compiled(y, y_pred, sample_weight)

    @contextlib.contextmanager
    def no_trace(self) -> Iterator[None]:
        """Keep weights, seeds, statistics, and losses unchanged inside.

        A pass inside draws the random numbers that the next pass outside will
        draw, and what it assigns or adds as a loss is dropped. Gradients flow
        as usual.
        """
        state = [(v, v.value) for v in self.variables]
        with keras.StatelessScope(state_mapping=state):
            yield

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this model again."""
        own = {name: getattr(self, name) for name in self.arguments}
        inner = keras.saving.serialize_keras_object(self.inner)
        return {**super().get_config(), self.wraps: inner, **own}

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        """Build the model that `get_config` describes."""
        inner = keras.saving.deserialize_keras_object(
            config[cls.wraps], custom_objects=custom_objects
        )
        return cls(**{**config, cls.wraps: inner})  # type: ignore[call-arg]
