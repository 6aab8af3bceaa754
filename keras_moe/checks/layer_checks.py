"""Check layers, tensors, shapes, and the objects that Keras finds by name."""

import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_moe.checks.argument_checks import (
    check_bool,
    check_callable,
    nearest_of,
)
from keras_moe.types import Activation, Shape, Tensor

_NOT_FOUND = (ValueError, TypeError, KeyError, AttributeError, ImportError)


def check_remat(remat: bool, dropout: float) -> bool:
    """Return `remat` if it is False or `dropout` is 0."""
    remat = check_bool("remat", remat)
    if not (remat and dropout):
        return remat
    raise ValueError(
        "`remat` must be False if there is dropout: recomputed units would be "
        "dropped at random a second time. Received: "
        f"remat={remat!r}, dropout={dropout!r}. Pass remat=False or dropout=0."
    )


def check_activation(activation: object) -> Activation:
    """Return the Keras activation that `activation` names or is."""
    found: Activation = _check_found(
        "activation",
        activation,
        keras.activations.get,
        "a name in keras.activations or a function",
        ("relu", "gelu", "silu", "softmax", "sigmoid", "tanh", "elu", "selu"),
        "Try 'relu', 'gelu' or 'silu'.",
    )
    return found


def check_initializer(name: str, value: Any) -> Any:
    """Return the Keras initializer that `value` names or is."""
    # Keras accepts None and arrays, so a string that names nothing is looked up
    # in place of them.
    is_array = value is None or hasattr(value, "dtype")
    return _check_found(
        name,
        repr(value) if is_array else value,
        keras.initializers.get,
        "a Keras initializer or the name of one",
        ("glorot_uniform", "glorot_normal", "he_normal", "he_uniform")
        + ("lecun_normal", "truncated_normal", "random_normal", "orthogonal")
        + ("random_uniform", "zeros", "ones", "variance_scaling"),
        "Try 'glorot_uniform'.",
    )


def check_regularizer(name: str, value: Any) -> Any:
    """Return the Keras regularizer that `value` names or is, or None."""
    return _check_found(
        name,
        value,
        keras.regularizers.get,
        "None, a Keras regularizer or the name of one",
        ("l1", "l2", "l1_l2", "orthogonal_regularizer"),
        "Try keras.regularizers.L2(1e-4).",
    )


def check_constraint(name: str, value: Any) -> Any:
    """Return the Keras constraint that `value` names or is, or None."""
    return _check_found(
        name,
        value,
        keras.constraints.get,
        "None, a Keras constraint or the name of one",
        ("max_norm", "non_neg", "unit_norm", "min_max_norm"),
        "Try keras.constraints.MaxNorm(2.0).",
    )


def _check_found(
    name: str,
    value: Any,
    get: Callable[[Any], Any],
    rule: str,
    names: tuple[str, ...],
    remedy: str,
) -> Any:
    """Return what Keras finds for `value`; its own error names no argument."""
    try:
        return get(value)
    except _NOT_FOUND as error:
        nearest = nearest_of(value, names)
        if nearest is not None:
            remedy = f"Did you mean {nearest!r}?"
        raise ValueError(
            f"`{name}` must be {rule}. Received: {name}={value!r}. {remedy}"
        ) from error


def check_optimizer(name: str, value: Any) -> keras.optimizers.Optimizer:
    """Return the Keras optimizer that `value` names or is."""
    optimizer = _check_found(
        name,
        value,
        keras.optimizers.get,
        "a Keras optimizer or the name of one",
        ("adam", "adamw", "sgd", "rmsprop", "adagrad", "lion", "muon"),
        "Try keras.optimizers.Adam(1e-3).",
    )
    return check_is_a(
        name,
        optimizer,
        keras.optimizers.Optimizer,
        "a Keras optimizer or the name of one",
        "Try keras.optimizers.Adam(1e-3).",
    )


def check_is_a(name: str, value: Any, kind: Any, rule: str, remedy: str) -> Any:
    """Return `value` if it is an instance of a class.

    Args:
        name: Str. Name of the argument.
        value: The value that was passed.
        kind: A class, or a tuple of classes.
        rule: Str. What the argument must be, such as "a Keras layer".
        remedy: Str. Sentence that ends the message.
    """
    if isinstance(value, kind):
        return value
    raise ValueError(
        f"`{name}` must be {rule}. Received: {name}={value!r}. {remedy}"
    )


def check_path(name: str, value: Any) -> pathlib.Path:
    """Return `value` as a path if it is a path of a file system."""
    path = check_is_a(
        name,
        value,
        (str, os.PathLike),
        "a path",
        "Pass a str or a pathlib.Path.",
    )
    path = pathlib.Path(path)
    # Both would create a folder named "~" or "gs:" in the working directory.
    if os.path.expanduser(path) != str(path):
        raise ValueError(
            f"`{name}` must be a path without `~`. Received: {value}. Pass "
            "os.path.expanduser(path)."
        )
    if re.match(r"[A-Za-z][\w+.-]+:$", "".join(path.parts[:1])):
        raise ValueError(
            f"`{name}` must be a path of a file system. Received: {value}, a "
            "URL. Mount the store, or copy the files there afterwards."
        )
    return path


def check_loss(name: str, value: Any) -> Any:
    """Return the Keras loss that `value` names or is."""
    found = _check_found(
        name,
        value,
        keras.losses.get,
        "a Keras loss, the name of one, or a function",
        ("mse", "mae", "binary_crossentropy", "categorical_crossentropy")
        + ("sparse_categorical_crossentropy", "huber", "mean_squared_error"),
        "Try 'mse'.",
    )
    return check_callable(name, found)


def check_model(name: str, value: Any) -> keras.Model:
    """Return `value` if it is a Keras model."""
    return check_is_a(
        name,
        value,
        keras.Model,
        "a Keras model",
        "Put a layer into keras.Sequential, and pass a model, not its name.",
    )


def check_input_shape(shape: Shape) -> int:
    """Return the last dimension of a shape `(..., D)` if D is known."""
    if len(shape) < 2:
        raise ValueError(
            "`inputs` must have rank 2 or more, (..., hidden_dim). Received: "
            f"shape {tuple(shape)}. Add a batch axis."
        )
    if shape[-1] is None:
        raise ValueError(
            "`inputs` must have a known last dimension, which determines the "
            "shapes of the weights. "
            f"Received: shape {tuple(shape)}. Give the model's Input a fixed "
            "last dimension."
        )
    return shape[-1]


def check_built_width(inputs: Tensor, hidden_dim: int | None) -> None:
    """Raise if the last dimension is not the one the layer was built with."""
    if inputs.shape[-1] != hidden_dim:
        raise ValueError(
            f"`inputs` must have {hidden_dim} as last dimension, the one this "
            f"layer was built with. Received: shape {tuple(inputs.shape)}. "
            "Project the inputs to that width, or build another layer."
        )


def check_floating(inputs: Tensor) -> None:
    """Raise if the inputs are not floating-point numbers."""
    if getattr(inputs.dtype, "is_floating_point", False):  # only PyTorch's
        return
    dtype = keras.backend.standardize_dtype(inputs.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"`inputs` must be floating-point. Received: dtype {dtype}. Embed "
            "token ids with keras.layers.Embedding, or cast the inputs."
        )


def check_mask_shape(mask: Tensor, inputs: Tensor) -> None:
    """Raise if a mask `(...)` does not fit inputs `(..., D)`."""
    expected, received = tuple(inputs.shape[:-1]), tuple(mask.shape)
    fits = len(expected) == len(received) and all(
        None in pair or pair[0] == pair[1]
        for pair in zip(expected, received, strict=True)
    )
    if not fits:
        raise ValueError(
            "`mask` must have the shape of `inputs` without its last axis: one "
            f"bool per token. Received: mask of shape {received}, inputs of "
            f"shape {tuple(inputs.shape)}. Pass a mask of shape {expected}."
        )


def is_same_shape(shape: Any, expected: Shape) -> bool:
    """Return whether two shapes agree in the dimensions known in both."""
    if not isinstance(shape, (list, tuple)) or len(shape) != len(expected):
        return False
    pairs = zip(shape, expected, strict=True)
    return all(
        not (isinstance(a, int) and isinstance(b, int)) or a == b
        for a, b in pairs
    )


def check_sequence_length(shape: Sequence[Any]) -> Any:
    """Return S of a shape `(..., S, D)` if its rank is 3 or more."""
    if len(shape) >= 3:
        return shape[-2]
    raise ValueError(
        "`load_balancing` must not be 'per_sequence' for inputs of rank 2, "
        f"which have no sequences. Received: inputs of shape {tuple(shape)}. "
        "Pass (batch, sequence, hidden_dim), or load_balancing='switch'."
    )


def check_distribution() -> None:
    """Raise if `keras.distribution` is set and the backend ignores it."""
    backend = keras.backend.backend()
    if backend == "jax" or keras.distribution.distribution() is None:
        return
    raise RuntimeError(
        "`keras.distribution.set_distribution` must be left out on a backend "
        "that ignores it: everything would silently run on one device. "
        f"Received: KERAS_BACKEND={backend}. Use JAX, or "
        "keras_moe.distribution.data_parallel: on TensorFlow in the scope of "
        "a tf.distribute strategy, on PyTorch with `keras-moe launch` or "
        "torchrun."
    )
