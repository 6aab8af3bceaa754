"""What every model shares: its arguments are its config."""

import inspect
from typing import Any

import keras

from keras_moe import checks
from keras_moe.layers import quantization
from keras_moe.layers.argument_names import check_names
from keras_moe.layers.trainable_parts import TrainableParts


class MoEModel(TrainableParts, keras.Model):
    """Base of the models: a functional `keras.Model` that remembers how it
    was built, so that it saves, loads and is cloned by its arguments.

    Args:
        inputs, outputs: symbolic tensors.
        arguments: what `get_config` gives back, by name, beside `name`,
            `dtype` and `trainable`. Layers among them are kept by config.
        name: str.
        dtype: dtype policy, or None for Keras's global one.
        trainable: bool.
    """

    def __new__(cls, *args: Any, **kwargs: Any):
        """Refuse arguments that the constructor does not have."""
        parameters = inspect.signature(cls.__init__).parameters
        kinds = {parameter.kind for parameter in parameters.values()}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            known = [name for name in parameters if name != "self"]
            check_names(cls.__name__, kwargs, known)
        return super().__new__(cls, *args, **kwargs)

    def __init__(
        self,
        inputs,
        outputs,
        arguments: dict,
        name: str | None = None,
        dtype=None,
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

    def get_config(self) -> dict:
        """Returns the arguments that build this model again."""
        return {
            **self._arguments,
            "name": self.name,
            "dtype": quantization.saved_dtype(self),
            "trainable": self.trainable,
            **self.trainable_config(),
        }

    @classmethod
    def from_config(cls, config: dict, custom_objects: dict | None = None):
        """Builds the model that `get_config` describes."""
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
    def moe_blocks(self) -> list:
        """The `MoEBlock`s inside, in order; none in a dense twin."""
        parts = (getattr(layer, "moe", None) for layer in self.layers)
        return [part for part in parts if hasattr(part, "router")]
