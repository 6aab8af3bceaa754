"""Layers under `keras.RematScope`: their state moves once.

Keras repeats the `call` of such a layer for its gradients. On PyTorch the
second run would see, and move again, the state that the first one wrote; on
JAX a value that is written inside must not leave; TensorFlow loses the
gradients of losses. So `call` becomes a function here: the values of all
variables go in, outputs, losses, and written values come out.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops, tree

from keras_moe import kernels
from keras_moe._keras import remat_mode_of
from keras_moe.layers.traces import own_trace


class Rematerialized:
    """Mixin of layers that Keras may compute a second time."""

    def rematerialized_call(
        self, layer_call: Callable, *args: Any, **kwargs: Any
    ) -> Callable:
        """Returns `layer_call`, repeated for gradients if the mode asks."""
        call: Callable = super().rematerialized_call(  # type: ignore[misc]
            layer_call, *args, **kwargs
        )
        if call is layer_call or remat_mode_of(self).mode == "activations":
            return call
        return functools.partial(call_recomputed, self, layer_call)


def call_recomputed(layer: Any, layer_call: Callable, *args, **kwargs):
    """Calls a layer; its gradients are computed from a second run.

    Args:
        layer: whose variables the call reads and writes.
        layer_call: its `call`, or `quantized_call`.
        *args, **kwargs: of the call.
    """
    leaves = tree.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if ops.is_tensor(leaf)]
    variables = layer.variables
    pure = not kernels.may_be_repeated()
    written: list[int] = []

    def run(tensors, values):
        filled = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            filled[place] = tensor
        args, kwargs = tree.pack_sequence_as((full_args, full_kwargs), filled)
        pairs = list(zip(variables, values, strict=True))
        scope = keras.StatelessScope(pairs, collect_losses=True)
        with kernels.repeatable(pure), own_trace(), scope:
            before = [scope.get_current_value(v) for v in variables]
            outputs = layer_call(*args, **kwargs)
            after = [scope.get_current_value(v) for v in variables]
            losses = list(scope.losses)
        moved = zip(before, after, strict=True)
        written[:] = [i for i, (old, new) in enumerate(moved) if old is not new]
        return outputs, losses, [after[i] for i in written]

    full_args, full_kwargs = args, kwargs
    training = kwargs.get("training")

    def run_as_layer(tensors, values):
        return _Call(run, layer)(tensors, values=values, training=training)

    values = _stored(variables)
    outputs, losses, new = keras.remat(run_as_layer)(
        [leaves[i] for i in places], values
    )
    for i, value in zip(written, new, strict=True):
        values[i] = ops.copy(values[i])  # what the second run reads
        kernels.assign_once(variables[i], value)
    for loss in losses:
        layer.add_loss(loss)
    return outputs


def _stored(variables: list) -> list:
    """Returns the variables' values as they are stored, not cast."""
    reader = _Call(lambda *_: [v.value for v in variables], None)
    return list(reader([], values=[]))


class _Call(keras.layers.Layer):
    """Runs a function as a layer: with its casts, and `training` known.

    PyTorch repeats a call outside of all that Keras puts around it.
    """

    def __init__(self, function: Callable, like: Any):
        with keras.RematScope(None):
            options = {"dtype": "float32", "autocast": False}
            if like is not None:
                options = {
                    "dtype": like.dtype_policy,
                    "autocast": like.autocast,
                }
            super().__init__(name="recomputed", **options)
        self.supports_masking = True
        self.function = function
        self.built = True

    def call(self, tensors, values, training=None):
        """Runs the function."""
        return self.function(tensors, values)

    def compute_mask(self, *args, **kwargs) -> None:
        """Returns None: the layer itself computes the mask."""
        return None
