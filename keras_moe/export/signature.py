"""Wrap any model as a functional model with a list of named inputs.

An artifact has a flat list of named inputs, and only symbolic inputs define
which of their axes may have any length. Functional, sequential, and subclassed
models of one tensor, a list, or a dict are all wrapped in this form.
"""

from typing import Any

import keras
from keras import tree


def as_functional(
    model: keras.Model, input_signature: Any = None
) -> keras.Model:
    """Return a functional model with the same weights and a list of inputs.

    Args:
        model: A built `keras.Model`.
        input_signature: Nest of objects with a `shape`, a `dtype`, and perhaps
            a `name`, such as `keras.InputSpec`, as in `keras.Model.export`.
            `None` (the default) uses the model's own inputs.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `input_signature` is `None` and the model has no
            symbolic inputs, if the number of specs is not the number of the
            model's inputs, or if an input has the name of the model.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "`model` must be a keras.Model. Received: "
            f"{type(model).__name__}. Put a layer into keras.Sequential."
        )
    own = _own(model, "inputs")
    if input_signature is None:
        if not own:
            raise ValueError(
                "`input_signature` is needed if a model has no symbolic "
                f"inputs. Received: model {model.name!r} of class "
                f"{type(model).__name__}. Pass, for instance, "
                'input_signature=[keras.InputSpec(shape=(None, 16), dtype="'
                'int32")], or build the model from keras.Input.'
            )
        input_signature = own
    specs = tree.flatten(input_signature)
    names = [t.name for t in own] if own else [None] * len(specs)
    if len(names) != len(specs):
        raise ValueError(
            "`input_signature` must have one spec per input of the model. "
            f"Received: {len(specs)} specs, {len(names)} inputs {names}. Pass "
            "the specs in the order of `model.inputs`."
        )
    inputs = [
        _input(spec, name, i)
        for i, (spec, name) in enumerate(zip(specs, names, strict=True))
    ]
    if model.name in [t.name for t in inputs]:
        raise ValueError(
            "`model` must not have the name of one of its inputs: both become "
            f"parts of one model. Received: {model.name!r}. Rename the input, "
            "or give the model another name."
        )
    structure = _structure(model, own, input_signature)
    outputs = model(tree.pack_sequence_as(structure, inputs))
    return keras.Model(_unwrapped(inputs), outputs, name=model.name)


def _own(model: keras.Model, name: str) -> Any:
    """Return the attribute `inputs` or `input` of a model, or `None`."""
    try:
        return getattr(model, name)
    except AttributeError:
        return None


def _structure(model: keras.Model, own: Any, input_signature: Any) -> Any:
    """Return the nest of inputs that the model is called with."""
    if own:
        nest = _own(model, "input")
        return own[0] if nest is None else nest
    if isinstance(input_signature, (list, tuple)) and len(input_signature) == 1:
        return input_signature[0]
    return input_signature


def _unwrapped(inputs: list[keras.KerasTensor]) -> Any:
    """Return one input without its list, which Keras would warn of."""
    return inputs[0] if len(inputs) == 1 else list(inputs)


def _input(spec: Any, name: str | None, position: int) -> keras.KerasTensor:
    name = getattr(spec, "name", None) or name or f"input_{position}"
    return keras.Input(
        shape=tuple(spec.shape)[1:],
        batch_size=spec.shape[0],
        dtype=_name_of(spec.dtype),
        name=name,
    )


def _name_of(dtype: Any) -> Any:
    """Return the name of a dtype object, a dtype without one, or float32."""
    return getattr(dtype, "name", None) or dtype or "float32"
