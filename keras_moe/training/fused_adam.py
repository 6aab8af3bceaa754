"""Adam for models whose weights are mostly those of experts."""

import inspect
from collections.abc import Sequence
from typing import Any

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
    """Update each weight in one pass over memory, as `keras.optimizers.Adam`.

    A step of a mixture of E experts updates E / K times the weights of a dense
    network with the same work. On PyTorch, Keras's Adam uses a dozen operations
    per weight and makes several copies of it. Here, PyTorch's fused operation
    updates each weight in place. On JAX and TensorFlow, whose compilers fuse
    the update, and for weights that the operation does not take (DTensors,
    dtypes other than float32), Keras's own update runs.

    Reference: Kingma & Ba 2014, in the form at the end of section 2, as in
    Keras (`epsilon` is added to the uncorrected root). With `weight_decay`, it
    is AdamW (Loshchilov & Hutter 2019).

    Args:
        *args: Arguments of `keras.optimizers.Adam`.
        **kwargs: Arguments of `keras.optimizers.Adam`.

    Raises:
        ValueError: If an argument is none of `keras.optimizers.Adam`.

    Example:

    ```python
    model = keras.Sequential(
        [
            keras.Input((16,)),
            keras_moe.MoEBlock(4, 32, dropout=0.1),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )
    model.compile(
        keras_moe.training.FusedAdam(1e-3), "sparse_categorical_crossentropy"
    )
    ```
    """

    def __init__(self, *args: Any, **kwargs: Any):
        check_names("FusedAdam", kwargs, _NAMES)
        super().__init__(*args, **kwargs)

    def apply(
        self,
        grads: Sequence[Tensor],
        trainable_variables: Sequence[keras.Variable] | None = None,
    ) -> None:
        """Update the variables by their gradients."""
        self._alpha: Tensor | None = None
        super().apply(grads, trainable_variables)

    def update_step(
        self, gradient: Tensor, variable: keras.Variable, learning_rate: Tensor
    ) -> None:
        """Update one variable and its slots."""
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

    def _step_size(self, learning_rate: Tensor) -> Tensor:
        """Return the learning rate with both bias corrections.

        It is computed once for all weights of a step.
        """
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
