"""The gate of a shared expert.

T tokens, D hidden_dim.
"""

from typing import Any

import keras
from keras import ops

from keras_moe.layers.moe_layer import MoELayer
from keras_moe.layers.quantization import KeptInFloats
from keras_moe.types import Shape, Tensor


class SharedExpertGate(KeptInFloats, MoELayer):
    """Multiplies each token's output of the shared expert by `sigmoid(x w)`.

    Args:
        kernel_initializer: Keras initializer.
        **kwargs: Arguments of `keras.layers.Layer`.

    Weights: `kernel` `(D, 1)`, w.

    Call arguments:
        tokens: Float tensor of shape `(T, D)`.
        outputs: Float tensor of shape `(T, D)`, of the shared expert.

    Returns:
        Tensor of shape `(T, D)`.

    Reference: Qwen Team 2024, "Qwen1.5-MoE"; `shared_expert_gate` of
    `qwen2_moe` in transformers.
    """

    def __init__(
        self, kernel_initializer: keras.initializers.Initializer, **kwargs: Any
    ):
        super().__init__(**kwargs)
        self.kernel_initializer = kernel_initializer

    def build(self, input_shape: Shape) -> None:
        """Create the weight for tokens `(T, D)`."""
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], 1),
            initializer=self.kernel_initializer,
        )

    def call(self, tokens: Tensor, outputs: Tensor) -> Tensor:
        """Return the outputs times the gate; see the class."""
        return outputs * ops.sigmoid(ops.matmul(tokens, self.kernel))
