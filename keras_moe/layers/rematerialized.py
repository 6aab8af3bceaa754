"""Layers under `keras.RematScope`, whose state is updated once.

Keras repeats the `call` of such a layer for its gradients. On PyTorch, the
second run would read, and update again, the state that the first run wrote; on
JAX, values that are assigned inside must not be used outside; TensorFlow loses
the gradients of losses. So `call` becomes a pure function here: from the values
of all variables to outputs, losses, and assigned values.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
from keras import ops, tree

from keras_moe import kernels
from keras_moe._keras import remat_mode_of
from keras_moe.layers.traces import own_trace
from keras_moe.types import Tensor


class Rematerialized:
    """Mixin of layers that Keras may compute a second time."""

    def rematerialized_call(
        self, layer_call: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Callable[..., Any]:
        """Return `layer_call`, or its recomputed form if the mode needs it."""
        call: Callable[..., Any] = super().rematerialized_call(  # type: ignore[misc]
            layer_call, *args, **kwargs
        )
        if call is layer_call or remat_mode_of(self).mode == "activations":
            return call
        return functools.partial(call_recomputed, self, layer_call)


def call_recomputed(
    layer: Any, layer_call: Callable[..., Any], *args: Any, **kwargs: Any
) -> Any:
    """Call a layer, and compute its gradients from a second run.

    Args:
        layer: Layer whose variables the call reads and writes.
        layer_call: Its `call` or `quantized_call`.
        *args, **kwargs: Arguments of the call.
    """
    leaves = tree.flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if ops.is_tensor(leaf)]
    variables = layer.variables
    pure = not kernels.may_be_repeated()
    written: list[int] = []

    def run(
        tensors: list[Tensor], values: list[Tensor]
    ) -> tuple[Any, list[Tensor], list[Tensor]]:
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

    def run_as_layer(tensors: list[Tensor], values: list[Tensor]) -> Any:
        return _Call(run, layer)(tensors, values=values, training=training)

    values = _stored(variables)
    outputs, losses, new = keras.remat(run_as_layer)(
        [leaves[i] for i in places], values
    )
    for i, value in zip(written, new, strict=True):
        values[i] = ops.copy(values[i])  # read by the second run
        kernels.assign_once(variables[i], value)
    for loss in losses:
        layer.add_loss(loss)
    return outputs


def _stored(variables: list[keras.Variable]) -> list[Tensor]:
    """Return the values of variables as they are stored, not cast."""
    reader = _Call(lambda *_: [v.value for v in variables], None)
    return list(reader([], values=[]))


class _Call(keras.layers.Layer):
    """Runs a function with the casts and the `training` of a layer.

    PyTorch repeats a call without the scopes that Keras sets around it.
    """

    def __init__(self, function: Callable[..., Any], like: Any):
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

    def call(
        self,
        tensors: list[Tensor],
        values: list[Tensor],
        training: bool | None = None,
    ) -> Any:
        """Run the function on tensors and values of variables."""
        return self.function(tensors, values)

    def compute_mask(self, *args: Any, **kwargs: Any) -> None:
        """Return None: the layer itself computes the mask."""
        return None
