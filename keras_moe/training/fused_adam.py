"""Adam for models whose experts are most of their weights."""

import inspect

import keras
from keras import ops

from keras_moe import _keras, kernels
from keras_moe.layers.argument_names import check_names
from keras_moe.types import Tensor

_NAMES = [
    name
    for name in inspect.signature(keras.optimizers.Adam.__init__).parameters
    if name not in ("self", "kwargs")
]


@keras.saving.register_keras_serializable(package="keras_moe")
class FusedAdam(keras.optimizers.Adam):
    """`keras.optimizers.Adam` that goes through memory once a step.

    A step of a mixture of E experts updates E / K times the weights of a
    dense network of the same work. On PyTorch Keras's Adam does it in a dozen
    operations and makes five copies of all weights; here each weight is
    updated by PyTorch's fused operation, which makes none. The values are
    those of Kingma & Ba 2014 in the form at the end of their section 2, as
    Keras has it (`epsilon` beside the uncorrected root). On JAX and
    TensorFlow, which fuse by themselves, and for what the operation does not
    take (DTensors, weights of another dtype than float32), it is Keras's.

    Args: those of `keras.optimizers.Adam`. With `weight_decay` it is AdamW
    (Loshchilov & Hutter 2019).
    """

    def __init__(self, *args, **kwargs):
        check_names("FusedAdam", kwargs, _NAMES)
        super().__init__(*args, **kwargs)

    def apply(self, grads, trainable_variables=None) -> None:
        """Updates the variables by their gradients."""
        self._alpha = None
        super().apply(grads, trainable_variables)

    def update_step(self, gradient, variable, learning_rate) -> None:
        """Updates one variable, and its slots."""
        done = kernels.adam_step(
            variable,
            gradient,
            _keras.adam_slots_of(self, variable),
            lambda: self._step_size(learning_rate),
            (self.beta_1, self.beta_2),
            self.epsilon,
        )
        if not done:
            super().update_step(gradient, variable, learning_rate)

    def _step_size(self, learning_rate) -> Tensor:
        """The learning rate with both corrections of bias; found once for
        all weights of a step."""
        if self._alpha is not None:
            return self._alpha
        step = ops.cast(self.iterations + 1, "float32")
        first, second = (
            1 - ops.power(ops.cast(beta, "float32"), step)
            for beta in (self.beta_1, self.beta_2)
        )
        rate = ops.cast(learning_rate, "float32")
        self._alpha = rate * ops.sqrt(second) / first
        return self._alpha
