"""All that the package uses of Keras's private API.

`tests/package/private_api/test_private_keras.py` asserts the effect of each
name, so that a version of Keras that changes one of them fails there.
`pyproject.toml` gives the range of versions.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_moe.types import Tensor

OVERRIDDEN = frozenset({"_clear_losses"})
"""Private methods that mixins of the package override. Keras calls
`_clear_losses` before each outermost call of a layer."""

REMATERIALIZED_CALL = "rematerialized_call"
"""The method by which Keras repeats a layer's call for its gradients."""

remat_mode_of: Callable[[Any], Any] = operator.attrgetter("_remat_mode")
"""Return the mode of the `keras.RematScope` that a layer was made in, or None.

It is not written in Python, since it runs in every call of a block."""


# Layers inside a layer.


def every_layer_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return a layer and all layers inside it, however deep, each once."""
    return list(layer._flatten_layers())


def layers_inside(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return all layers inside a layer, however deep, each once."""
    return list(layer._flatten_layers(include_self=False))


def layers_right_below(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the layers that a layer itself holds, each once."""
    return list(layer._flatten_layers(include_self=False, recursive=False))


# Losses that a layer adds.


def clear_losses(layer: keras.layers.Layer) -> None:
    """Drop the losses that a layer and the layers inside it have added."""
    layer._clear_losses()


def added_losses_of(layer: Any) -> Sequence[Tensor]:
    """Return the losses that a layer added outside of a `StatelessScope`.

    Losses of layers inside it are not included.
    """
    losses: Sequence[Tensor] = layer._losses
    return losses


def replace_added_losses(layer: Any, make: Callable[[], Any]) -> None:
    """Replace the list of a layer's losses by another sequence.

    Nothing changes if it is not a list any more.
    """
    if isinstance(layer._losses, list):
        layer._losses = make()


def stateless_loss_ids_of(layer: Any) -> set[int]:
    """Return the ids of the losses that a layer added in a `StatelessScope`.

    Losses of layers inside it are not included. The set may be changed.
    """
    ids: set[int] = layer._loss_ids
    return ids


def has_losses_of_step(model: keras.Model) -> bool:
    """Return whether `losses` are those that a stateless call returned.

    They are while Keras computes the loss of a step on JAX.
    """
    return bool(model._losses_override)


def compiled_loss_of(model: keras.Model) -> Callable[..., Any] | None:
    """Return the loss that a model was compiled with, or None.

    It is a function of `y`, `y_pred`, and `sample_weight`.
    """
    loss: Callable[..., Any] | None = model._compile_loss
    return loss


# Variables.


def stored_value_of(variable: keras.Variable) -> Tensor:
    """Return a variable's tensor, which `variable.value` may cast."""
    return variable._value


def put_value(variable: keras.Variable, value: Tensor) -> None:
    """Give a variable another tensor, of any kind and shape.

    `assign` would copy into the present tensor.
    """
    variable._value = value


def put_shape(variable: keras.Variable, shape: Sequence[int]) -> None:
    """Set the shape of a variable, which `assign` then checks."""
    variable._shape = tuple(shape)


def note_weights_anew(layer: keras.layers.Layer) -> None:
    """Register a layer's present tensors with PyTorch, instead of earlier ones.

    Without this, `layer.parameters()` would list the earlier tensors.
    """
    if any(name == "_torch_params" for name, _ in layer.named_children()):
        delattr(layer, "_torch_params")
    layer.torch_params  # noqa: B018  reading it registers them


# Quantized layers.


def mark_quantized(layer: keras.layers.Layer) -> None:
    """Mark a layer as quantized.

    Keras then accepts a quantized dtype policy for the built layer, and
    refuses to replace its quantized weights again.
    """
    layer._is_quantized = True


# Optimizers.


def adam_slots_of(
    optimizer: keras.optimizers.Adam, variable: keras.Variable
) -> list[keras.Variable]:
    """Return Adam's moments of one variable.

    These are the first, the second, and with `amsgrad` the largest second.
    """
    index = optimizer._get_variable_index(variable)
    slots = [optimizer._momentums[index], optimizer._velocities[index]]
    if optimizer.amsgrad:
        slots.append(optimizer._velocity_hats[index])
    return slots


def variables_trained_by(
    optimizer: keras.optimizers.Optimizer,
) -> list[keras.Variable]:
    """Return the variables of an optimizer, in the order of their gradients."""
    variables: list[keras.Variable] = optimizer._trainable_variables
    return variables


# Training.


def initial_epoch_of(model: keras.Model) -> int | None:
    """Return the epoch at which `fit` starts instead of its argument."""
    epoch: int | None = model._initial_epoch
    return epoch


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Set the epoch at which `fit` starts; to be called in `on_train_begin`."""
    model._initial_epoch = epoch


def unsynchronized_model_of(callback: keras.callbacks.Callback) -> keras.Model:
    """Return a callback's model without synchronizing its state.

    On JAX `callback.model` waits for the step and copies the state into the
    model.
    """
    return callback._model


def strategy_of(model: keras.Model) -> Any:
    """Return the `tf.distribute` strategy in whose scope a model was made.

    None if there was none; `model.distribute_strategy` is TensorFlow's default
    strategy then.
    """
    return model._distribute_strategy


def symbolic_build_of(model: keras.Model) -> Callable[..., Any] | None:
    """Return the method that builds a model under `tf.distribute`, or None.

    Keras calls it with `iterator` or `data_batch` before the first step.
    """
    return getattr(model, "_maybe_symbolic_build", None)


def replace_symbolic_build(
    model: keras.Model, build: Callable[..., Any]
) -> None:
    """Replace the method that `symbolic_build_of` returns."""
    model._maybe_symbolic_build = build


def replica_reduction() -> Callable[..., Any] | None:
    """Return the function with which Keras reduces the values of replicas.

    Only its trainer for TensorFlow has one.
    """
    names: dict[str, Any] = keras.Model.make_train_function.__globals__
    return names.get("reduce_per_replica")
