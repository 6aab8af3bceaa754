"""The members of an ensemble as layers of it, and the inputs they share."""

import keras
from keras import ops

from keras_moe import checks
from keras_moe.types import Tensor


class Member(keras.layers.Layer):
    """Runs one model inside an ensemble.

    Args:
        model: its output must be one tensor.
        frozen: whether it runs with `training=False` and without gradients,
            whatever the ensemble does. A frozen MoE adds no balance losses.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        inputs: the ensemble's; of a dict, the model gets the keys it knows.
    """

    def __init__(self, model: keras.Model, frozen: bool, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.model = model
        self.frozen = frozen

    def call(self, inputs, training=None) -> Tensor:
        """Returns the model's output."""
        inputs = self.own_inputs(inputs)
        if not self.frozen:
            return self.model(inputs, training=training)
        return ops.stop_gradient(self.model(inputs, training=False))

    def compute_output_spec(self, inputs, training=None):
        """Returns the model's symbolic output; builds the model."""
        outputs = self.model(self.own_inputs(inputs), training=False)
        return keras.tree.map_structure(
            lambda x: keras.KerasTensor(x.shape, x.dtype), outputs
        )

    @property
    def metrics(self) -> list:
        """None: those the model is compiled with are not the ensemble's."""
        return []

    def own_inputs(self, inputs):
        """Returns those of a dict of inputs that the model knows."""
        known = input_of(self.model)
        if not (isinstance(known, dict) and isinstance(inputs, dict)):
            return inputs
        return {key: inputs[key] for key in known}


def input_of(model: keras.Model):
    """Returns a model's symbolic inputs, nested; None where it has none."""
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


def shared_inputs(models: list[keras.Model]):
    """Returns new `keras.Input`s for all: of dicts, their union.

    Raises:
        ValueError: where no model has symbolic inputs.
    """
    known = [x for x in map(input_of, models) if x is not None]
    if not known:
        raise ValueError(
            "`models` must hold at least one Functional or built Sequential "
            "model: it says what the inputs are. Received: "
            f"{[type(model).__name__ for model in models]}. Wrap one: "
            "`x = keras.Input(...); keras.Model(x, model(x))`."
        )
    if not all(isinstance(x, dict) for x in known):
        return keras.tree.map_structure(lambda x: _copy(x, x.name), known[0])
    union = {key: x for inputs in reversed(known) for key, x in inputs.items()}
    return {key: _copy(x, key) for key, x in union.items()}


def _copy(x, name):
    return keras.Input(batch_shape=x.shape, dtype=x.dtype, name=name)


def check_models(models) -> list[keras.Model]:
    """Returns the models as a list where they are models, each once."""
    if isinstance(models, keras.Model):
        models = [models]
    models = checks.check_list("models", models, "Keras models")
    if not models or not all(isinstance(m, keras.Model) for m in models):
        raise ValueError(
            "`models` must be a list of one or more Keras models. Received: "
            f"models={models!r}. Pass the models to combine."
        )
    if len({id(model) for model in models}) < len(models):
        raise ValueError(
            "`models` must not hold a model twice. Received: "
            f"{[model.name for model in models]}. Build another one, or copy "
            "it with keras.models.clone_model."
        )
    return models


def check_outputs(models: list[keras.Model], outputs: list) -> None:
    """Raises where the outputs are not one tensor each, of one shape."""
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
