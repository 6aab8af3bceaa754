"""Base class of mixtures with one output per task.

T tokens, D hidden_dim, E experts, H output_dim, N tasks.
"""

from typing import Any

import keras
from keras import ops

from keras_moe import checks
from keras_moe.layers.added_losses import floatx_regularizer
from keras_moe.layers.dense_mixture import DenseMixture
from keras_moe.layers.initializers import reseeded
from keras_moe.layers.tokens import zero_padding
from keras_moe.routing.assignment import softmax
from keras_moe.types import Shape, Tensor


class TaskMixture(DenseMixture):
    """Base class of layers from one input to a list of outputs, one per task.

    The gates of the papers are linear maps to a softmax, like routers: the
    weights `router_kernels`, one per output, float32 under every dtype policy.
    """

    num_outputs: int

    def add_router_kernels(self, shapes: list[tuple[int, int]]) -> None:
        """Create `router_kernels`, a `(D, E)` for each output."""
        self.router_kernels = [
            self.add_weight(
                name=f"router_kernel_{k}",
                shape=shape,
                initializer=reseeded(self.kernel_initializer, "router", k),
                regularizer=floatx_regularizer(self.kernel_regularizer),
                dtype="float32",
                autocast=False,
            )
            for k, shape in enumerate(shapes)
        ]

    def weights_of(self, tokens: Tensor, output: int) -> Tensor:
        """Return the mixture weights of an output, float32 `(T, E)`."""
        tokens = ops.cast(tokens, "float32")
        return softmax(ops.matmul(tokens, self.router_kernels[output]))

    def restored(
        self, mixed: Tensor, token_mask: Tensor | None, inputs: Tensor
    ) -> Tensor:
        """Return outputs `(T, H)` as `(..., H)`, zero for padding."""
        mixed = zero_padding(mixed, token_mask)
        if len(inputs.shape) == 2:
            return mixed
        return ops.reshape(mixed, (*ops.shape(inputs)[:-1], mixed.shape[-1]))

    def compute_output_shape(self, input_shape: Any) -> list[Shape]:
        """Return the shape `(..., H)` of each output."""
        shape = self.output_shape_of(first(input_shape))
        return [shape] * self.num_outputs

    def compute_output_spec(
        self, inputs: Any, mask: Any = None, training: bool | None = None
    ) -> list[keras.KerasTensor]:
        """Return the symbolic outputs of symbolic inputs."""
        if not isinstance(inputs, (list, tuple)):
            inputs = [inputs]
        for x in inputs:
            checks.check_floating(x)
        shapes = self.compute_output_shape(inputs[0].shape)
        return [keras.KerasTensor(s, self.compute_dtype) for s in shapes]

    def compute_mask(
        self, inputs: Any, mask: Any = None
    ) -> list[Tensor | None]:
        """Return the mask for every output."""
        return [one_mask(mask)] * self.num_outputs


def first(shape: Any) -> Shape:
    """Return the first shape of a list, or a single shape unchanged."""
    if isinstance(shape[0], (list, tuple)):
        return tuple(shape[0])
    return tuple(shape)


def one_mask(mask: Any) -> Tensor | None:
    """Return the first mask of a list that is not None, or a single mask."""
    if not isinstance(mask, (list, tuple)):
        return mask
    return next((m for m in mask if m is not None), None)
