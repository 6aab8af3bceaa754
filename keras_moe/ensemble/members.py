"""The members of an ensemble as layers of it, and the inputs they share."""

from typing import Any

import keras
from keras import ops

from keras_moe import checks
from keras_moe.types import Tensor


class Member(keras.layers.Layer):
    """Run one model inside an ensemble.

    Args:
        model: Built model whose output is one tensor.
        frozen: bool. Whether the model always runs with `training=False` and
            without gradients. A frozen MoE adds no load-balancing losses.
        **kwargs: Arguments of `keras.layers.Layer`.

    Call arguments:
        inputs: Inputs of the ensemble. If they are a dict, the model gets the
            keys that it has as inputs.
    """

    def __init__(self, model: keras.Model, frozen: bool, **kwargs: Any):
        super().__init__(autocast=False, **kwargs)
        self.model = model
        self.frozen = frozen

    def call(self, inputs: Any, training: bool | None = None) -> Tensor:
        """Return the model's output."""
        inputs = self.own_inputs(inputs)
        if not self.frozen:
            return self.model(inputs, training=training)
        return ops.stop_gradient(self.model(inputs, training=False))

    def compute_output_spec(
        self, inputs: Any, training: bool | None = None
    ) -> Any:
        """Return the model's symbolic output; this builds the model."""
        outputs = self.model(self.own_inputs(inputs), training=False)
        return keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, x.dtype), outputs
        )

    @property
    def metrics(self) -> list[Any]:
        """No metrics, since the model's own are not those of the ensemble."""
        return []

    def own_inputs(self, inputs: Any) -> Any:
        """Return inputs without the keys that the model does not have."""
        known = input_of(self.model)
        if not (isinstance(known, dict) and isinstance(inputs, dict)):
            return inputs
        return {key: inputs[key] for key in known}


def input_of(model: keras.Model) -> Any:
    """Return a model's symbolic inputs in their structure; None without."""
    for name in ("input", "inputs"):  # Functional; Sequential
        try:
            found = getattr(model, name)
        except (AttributeError, ValueError):
            continue
        if isinstance(found, list) and len(found) == 1:
            found = found[0]
        if found is not None:
            return found
    return None


def shared_inputs(models: list[keras.Model]) -> Any:
    """Return new `keras.Input`s for all models; of dicts, the union.

    Raises:
        ValueError: If no model has symbolic inputs.
    """
    known = [x for x in map(input_of, models) if x is not None]
    if not known:
        raise ValueError(
            "`models` must hold at least one Functional or built Sequential "
            "model, which has the shapes of the inputs. Received: "
            f"{[type(model).__name__ for model in models]}. Wrap one: "
            "`x = keras.Input(...); keras.Model(x, model(x))`."
        )
    if not all(isinstance(x, dict) for x in known):
        return keras.tree.map_structure(lambda x: _copy(x, x.name), known[0])
    union = {key: x for inputs in reversed(known) for key, x in inputs.items()}
    return {key: _copy(x, key) for key, x in union.items()}


def _copy(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.Input(batch_shape=x.shape, dtype=x.dtype, name=name)


def check_models(models: Any) -> list[keras.Model]:
    """Return the models as a list if they are Keras models, each once."""
    if isinstance(models, keras.Model):
        models = [models]
    found = checks.check_list("models", models, "Keras models")
    if not found or not all(isinstance(m, keras.Model) for m in found):
        raise ValueError(
            "`models` must be a list of one or more Keras models. Received: "
            f"models={found!r}. Pass the models to combine."
        )
    if len({id(model) for model in found}) < len(found):
        raise ValueError(
            "`models` must not hold a model twice. Received: "
            f"{[model.name for model in found]}. Build another one, or copy "
            "it with keras.models.clone_model."
        )
    return found


def check_outputs(models: list[keras.Model], outputs: list[Any]) -> None:
    """Raise if the outputs are not one tensor per model, all of one shape."""
    shapes = [getattr(x, "shape", ()) for x in outputs]
    first = tuple(shapes[0])
    alike = all(tuple(shape) == first for shape in shapes)
    if alike and len(first) > 1 and first[-1] is not None:
        return
    received = {m.name: s for m, s in zip(models, shapes, strict=True)}
    raise ValueError(
        "`models` must each have one output, all of the same shape, (batch, "
        f"..., classes or values). Received: output shapes {received}. Train "
        "the members on the same task; give a single output."
    )
