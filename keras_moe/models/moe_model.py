"""The base of the models, whose arguments are their config."""

import inspect
from typing import Any, Self

import keras

from keras_moe import checks
from keras_moe.layers import MoEBlock, quantization
from keras_moe.layers.argument_names import check_names
from keras_moe.layers.trainable_parts import TrainableParts


class MoEModel(TrainableParts, keras.Model):
    """Base of the models: a functional `keras.Model` that keeps its arguments.

    It is saved, loaded, and cloned by them.

    Args:
        inputs: Symbolic tensors.
        outputs: Symbolic tensors.
        arguments: Dict from names to values that `get_config` returns beside
            `name`, `dtype`, and `trainable`. Layers are kept as their config.
        name: str or None. Name of the model. `None` (the default) derives it
            from the class name.
        dtype: dtype policy or None. `None` (the default) means Keras's global
            policy.
        trainable: bool. Whether training updates the weights. Defaults to
            `True`.

    Raises:
        ValueError: If an argument is none of the constructor's, or if
            `trainable` is no bool.
    """

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Refuse arguments that the constructor does not have."""
        parameters = inspect.signature(cls.__init__).parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            known = [name for name in parameters if name != "self"]
            check_names(cls.__name__, kwargs, known)
        model: Self = super().__new__(cls, *args, **kwargs)
        return model

    def __init__(
        self,
        inputs: Any,
        outputs: Any,
        arguments: dict[str, Any],
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
    ):
        trainable = checks.check_bool("trainable", trainable)
        super().__init__(
            inputs=inputs, outputs=outputs, name=name, trainable=trainable
        )
        self.dtype_policy = keras.dtype_policies.get(dtype)
        quantization.restore_configs(self)
        self._arguments = {
            name: keras.saving.serialize_keras_object(value)
            for name, value in arguments.items()
        }

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that build this model again."""
        return {
            **self._arguments,
            "name": self.name,
            "dtype": quantization.saved_dtype(self),
            "trainable": self.trainable,
            **self.trainable_config(),
        }

    @classmethod
    def from_config(
        cls,
        config: dict[str, Any],
        custom_objects: dict[str, Any] | None = None,
    ) -> Self:
        """Build the model that `get_config` describes."""
        router = config.get("router")
        if isinstance(router, dict):
            router = keras.saving.deserialize_keras_object(
                router, custom_objects=custom_objects
            )
            config = {**config, "router": router}
        config = dict(config)
        flags = config.pop("trainable_parts", None)
        model = cls(**config)
        model.set_trainable_parts(flags)
        return model

    @property
    def moe_blocks(self) -> list[MoEBlock]:
        """The `MoEBlock`s inside, in order. A dense twin has none."""
        parts: list[Any] = [getattr(x, "moe", None) for x in self.layers]
        return [part for part in parts if hasattr(part, "router")]
