"""One form for every model: a functional one of named tensors.

An artifact has a flat list of named inputs, and only named, symbolic inputs
say which of their axes may be of any length. Whatever a model is (functional,
sequential, a subclass; one tensor, a list, a dict) it is wrapped into that.
"""

from typing import Any

import keras
from keras import tree


def as_functional(model: keras.Model, input_signature: Any = None):
    """Returns a functional model of the same weights, one list of inputs.

    Args:
        model: built.
        input_signature: what `keras.Model.export` takes: a nest of things
            with `shape`, `dtype` and maybe `name`, such as
            `keras.InputSpec`. None takes the model's own inputs.

    Raises:
        TypeError: where `model` is no Keras model.
        ValueError: where the inputs are not known, or not of the model.
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
                "`input_signature` is needed where a model has no symbolic "
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
            "`input_signature` must hold one spec for each input of the model."
            f" Received: {len(specs)} specs, {len(names)} inputs {names}. Pass "
            "them in the order of `model.inputs`."
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


def _own(model, name):
    """The model's symbolic `inputs`, or `input`, their nest; or None."""
    try:
        return getattr(model, name)
    except AttributeError:
        return None


def _structure(model, own, input_signature):
    """The nest that the model is called on."""
    if own:
        nest = _own(model, "input")
        return own[0] if nest is None else nest
    if isinstance(input_signature, (list, tuple)) and len(input_signature) == 1:
        return input_signature[0]
    return input_signature


def _unwrapped(inputs):
    """Keras warns of a list of one where a call passes its tensor."""
    return inputs[0] if len(inputs) == 1 else list(inputs)


def _input(spec, name, position):
    name = getattr(spec, "name", None) or name or f"input_{position}"
    return keras.Input(
        shape=tuple(spec.shape)[1:],
        batch_size=spec.shape[0],
        dtype=_name_of(spec.dtype),
        name=name,
    )


def _name_of(dtype):
    """`"float32"` of anything that says so; a `tf.DType` by its name."""
    return getattr(dtype, "name", None) or dtype or "float32"
