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

Not a function of Python's, since it runs in every call of a block."""


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
    """Drop what a layer and those inside it have added to the loss."""
    layer._clear_losses()


def added_losses_of(layer: Any) -> Sequence[Tensor]:
    """Return the losses that a layer itself added outside of a
    `keras.StatelessScope`."""
    return layer._losses


def replace_added_losses(layer: Any, make: Callable[[], Any]) -> None:
    """Put another sequence in place of the list of a layer's losses, if it
    still is a list."""
    if isinstance(layer._losses, list):
        layer._losses = make()


def stateless_loss_ids_of(layer: Any) -> set[int]:
    """Return the set of ids of the losses that a layer itself added inside
    of a `keras.StatelessScope`; it may be changed."""
    return layer._loss_ids


def has_losses_of_step(model: keras.Model) -> bool:
    """Return whether `losses` are those that a stateless call returned, as
    they are while Keras computes the loss of a step on JAX."""
    return bool(model._losses_override)


def compiled_loss_of(model: keras.Model) -> Callable | None:
    """Return the function of `y`, `y_pred`, and `sample_weight` that a model
    was compiled with, or None."""
    return model._compile_loss


# Variables.


def stored_value_of(variable: keras.Variable) -> Tensor:
    """Return a variable's tensor; `variable.value` may be cast by a dtype
    policy."""
    return variable._value


def put_value(variable: keras.Variable, value: Tensor) -> None:
    """Give a variable another tensor, whatever its kind or shape; `assign`
    would copy into the one that is there."""
    variable._value = value


def put_shape(variable: keras.Variable, shape: Sequence[int]) -> None:
    """State another shape of a variable, which `assign` then checks."""
    variable._shape = tuple(shape)


def note_weights_anew(layer: keras.layers.Layer) -> None:
    """Let a layer note its weights' present tensors for PyTorch, and drop
    those that it has noted before."""
    if any(name == "_torch_params" for name, _ in layer.named_children()):
        delattr(layer, "_torch_params")
    layer.torch_params  # noqa: B018  noted anew


# Quantized layers.


def mark_quantized(layer: keras.layers.Layer) -> None:
    """Let Keras accept that a built layer gets a quantized dtype policy, and
    refuse that its quantized weights are replaced again."""
    layer._is_quantized = True


# Optimizers.


def adam_slots_of(
    optimizer: keras.optimizers.Adam, variable: keras.Variable
) -> list[keras.Variable]:
    """Return Adam's moments of one variable: the first, the second, and the
    largest second with `amsgrad`."""
    index = optimizer._get_variable_index(variable)
    slots = [optimizer._momentums[index], optimizer._velocities[index]]
    if optimizer.amsgrad:
        slots.append(optimizer._velocity_hats[index])
    return slots


def variables_trained_by(
    optimizer: keras.optimizers.Optimizer,
) -> list[keras.Variable]:
    """Return the variables that an optimizer was built with, in the order in
    which it takes their gradients."""
    return optimizer._trainable_variables


# Training.


def initial_epoch_of(model: keras.Model) -> int | None:
    """Return the epoch at which `fit` starts instead of its argument."""
    return model._initial_epoch


def set_initial_epoch(model: keras.Model, epoch: int | None) -> None:
    """Let `fit` start at an epoch; called in `on_train_begin`."""
    model._initial_epoch = epoch


def unsynchronized_model_of(callback: keras.callbacks.Callback) -> keras.Model:
    """Return a callback's model. On JAX `callback.model` waits for the step
    and copies the state into the model."""
    return callback._model


def strategy_of(model: keras.Model) -> Any:
    """Return the `tf.distribute` strategy in whose scope a model was made, or
    None; `model.distribute_strategy` is TensorFlow's default then."""
    return model._distribute_strategy


def symbolic_build_of(model: keras.Model) -> Callable | None:
    """Return the method that builds a model from `iterator` or `data_batch`
    before its first step under `tf.distribute`."""
    return getattr(model, "_maybe_symbolic_build", None)


def replace_symbolic_build(model: keras.Model, build: Callable) -> None:
    """Put another function in place of `symbolic_build_of(model)`."""
    model._maybe_symbolic_build = build


def replica_reduction() -> Callable | None:
    """Return the function by which Keras's trainer makes one value of those
    of all replicas on TensorFlow."""
    make = keras.Model.make_train_function
    return make.__globals__.get("reduce_per_replica")
