"""TensorFlow under XLA, kernels of 8 or 4 bits: blocks of sorted rows.

P rows, sorted by group; E groups; D input and F output width; B rows per block.

The loop is in `xla_loop.py`. A step widens one group's integers.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf

from keras_moe.kernels import quantized, reference
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.kernels.reference import FFNWeights
from keras_moe.kernels.tensorflow.xla_loop import map_blocks
from keras_moe.types import Activation, Tensor


def grouped_matmul(
    x: Tensor, kernel: QuantizedKernel, group_sizes: Tensor
) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    depth, banks = x.shape[-1], [kernel.values, kernel.scale]

    def run(x: Tensor, function: Callable[..., Tensor], width: int) -> Tensor:
        def block(
            rows: Sequence[Tensor], slices: Sequence[Tensor]
        ) -> tuple[list[Tensor], list[Tensor]]:
            values, scale = slices
            own = kernel._replace(values=values, scale=scale)
            return [function(rows[0], own)], []

        (y,), _ = map_blocks(block, [x], banks, group_sizes, [width])
        return y

    def forward(x: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        def backward(dy: Tensor) -> Tensor:
            def gradient(rows: Tensor, own: QuantizedKernel) -> Tensor:
                return quantized.input_gradient(rows, own, depth)

            return run(dy, gradient, depth)

        return run(x, quantized.product, kernel.values.shape[-1]), backward

    return tf.custom_gradient(forward)(x)


def grouped_ffn(
    x: Tensor, weights: FFNWeights, group_sizes: Tensor, activation: Activation
) -> Tensor:
    """Run the composition, with one loop per kernel."""
    return reference.composition(
        x, weights, group_sizes, activation, grouped_matmul
    )
