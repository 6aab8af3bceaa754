"""What mixtures with an output a task share.

T tokens, D hidden_dim, E experts, H output_dim, N tasks.
"""

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
    """Base of layers from one input to a list of outputs, one a task.

    What the papers call gates are linear maps to a softmax, as routers are:
    float32 under every dtype policy, `router_kernels`, one a task.
    """

    num_outputs: int

    def add_router_kernels(self, shapes: list[tuple[int, int]]) -> None:
        """Creates `router_kernels`, a `(D, E)` for each output."""
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
        """Returns an output's mixture weights, float32 `(T, E)`."""
        tokens = ops.cast(tokens, "float32")
        return softmax(ops.matmul(tokens, self.router_kernels[output]))

    def restored(
        self, mixed: Tensor, token_mask: Tensor | None, inputs: Tensor
    ) -> Tensor:
        """Returns `(T, H)` as `(..., H)`, padding as zero."""
        mixed = zero_padding(mixed, token_mask)
        if len(inputs.shape) == 2:
            return mixed
        return ops.reshape(mixed, (*ops.shape(inputs)[:-1], mixed.shape[-1]))

    def compute_output_shape(self, input_shape: Shape) -> list[Shape]:
        """Returns the shape of each output: `(..., H)`."""
        shape = self.output_shape_of(first(input_shape))
        return [shape] * self.num_outputs

    def compute_output_spec(self, inputs, mask=None, training=None):
        """Returns the symbolic outputs of symbolic inputs."""
        if not isinstance(inputs, (list, tuple)):
            inputs = [inputs]
        for x in inputs:
            checks.check_floating(x)
        shapes = self.compute_output_shape(inputs[0].shape)
        return [keras.KerasTensor(s, self.compute_dtype) for s in shapes]

    def compute_mask(self, inputs, mask=None):
        """Passes the mask on to every output."""
        return [one_mask(mask)] * self.num_outputs


def first(shape: Shape) -> Shape:
    """Returns the first of a list of shapes, or the shape."""
    if isinstance(shape[0], (list, tuple)):
        return tuple(shape[0])
    return tuple(shape)


def one_mask(mask):
    """Returns the one mask of inputs that share it, or None."""
    if not isinstance(mask, (list, tuple)):
        return mask
    return next((m for m in mask if m is not None), None)
