"""JAX, kernels of 8 or 4 bits: blocks of sorted rows, one widened matrix.

P rows, sorted by group; E groups; D input and F output width; B rows a block.

The loop is `loop.py`'s. A step slices one group's integers and widens
them for its product. Rows that are quantised are multiplied as floats that
hold integers: XLA's integer product on CPU is many times slower.
"""

from functools import partial

import jax

from keras_moe.kernels import quantized, reference
from keras_moe.kernels.block_sizes import block_sizes
from keras_moe.kernels.jax.loop import map_blocks
from keras_moe.kernels.jax.reverse_only import ReverseOnly
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.types import Activation, Tensor


def grouped_matmul(
    x: Tensor, kernel: QuantizedKernel, group_sizes: Tensor
) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    static, arrays = _split(kernel)
    return _grouped_matmul(static, x.shape[-1], x, arrays, group_sizes)


def grouped_ffn(
    x: Tensor, weights: FFNWeights, group_sizes: Tensor, activation: Activation
) -> Tensor:
    """Up, gate, activation and down of one block before the next one's."""
    static, arrays = [], []
    for bank in weights:
        both = _split(bank) if isinstance(bank, QuantizedKernel) else (0, bank)
        static.append(both[0])
        arrays.append(both[1])
    return _grouped_ffn(
        activation, tuple(static), x, FFNWeights(*arrays), group_sizes
    )


def _split(kernel):
    """What of a kernel is static, and its arrays: two tuples."""
    return kernel[2:], kernel[:2]


@partial(ReverseOnly, static=2)
@partial(jax.jit, static_argnums=(0, 1))
def _grouped_matmul(static, depth, x, arrays, group_sizes):
    def block(rows, own):
        kernel = QuantizedKernel(*own, *static)
        return (quantized.product(rows[0], kernel),), None

    return _map(block, x, arrays, group_sizes, arrays[0].shape[-1])


def _grouped_matmul_forward(static, depth, x, arrays, group_sizes):
    y = _grouped_matmul(static, depth, x, arrays, group_sizes)
    return y, (arrays, group_sizes)


def _grouped_matmul_backward(static, depth, residuals, dy):
    arrays, group_sizes = residuals
    dx = _input_gradient(static, depth, dy, arrays, group_sizes)
    return dx, None, None


@partial(ReverseOnly, static=2)
@partial(jax.jit, static_argnums=(0, 1))
def _input_gradient(static, depth, dy, arrays, group_sizes):
    def block(rows, own):
        kernel = QuantizedKernel(*own, *static)
        return (quantized.input_gradient(rows[0], kernel, depth),), None

    return _map(block, dy, arrays, group_sizes, depth)


def _input_gradient_forward(static, depth, dy, arrays, group_sizes):
    dx = _input_gradient(static, depth, dy, arrays, group_sizes)
    return dx, (arrays, group_sizes)


def _input_gradient_backward(static, depth, residuals, d_dx):
    """A product with rows that are not rounded: rounding is the identity."""
    _, block_rows = static
    d_dy = _grouped_matmul((None, block_rows), depth, d_dx, *residuals)
    return d_dy, None, None


@partial(ReverseOnly, static=2)
@partial(jax.jit, static_argnums=(0, 1))
def _grouped_ffn(activation, static, x, weights, group_sizes):
    def linear(rows, kernel, bias):
        y = quantized.product(rows, kernel)
        return y if bias is None else y + bias

    def block(rows, own):
        return (ffn(rows[0], _whole(static, own), activation, linear),), None

    width = weights.down_kernel[0].shape[-1]
    return _map(block, x, weights, group_sizes, width)


def _whole(static, weights):
    """The weights with their kernels put together again."""
    return FFNWeights(
        *(
            QuantizedKernel(*arrays, *rest) if rest else arrays
            for arrays, rest in zip(weights, static, strict=True)
        )
    )


def _grouped_ffn_forward(activation, static, x, weights, group_sizes):
    y = _grouped_ffn(activation, static, x, weights, group_sizes)
    return y, (x, weights, group_sizes)


def _grouped_ffn_backward(activation, static, residuals, dy):
    """Through the composition; the kernels themselves have no gradient."""
    x, weights, group_sizes = residuals
    whole = _whole(static, weights)
    names = [n for n in whole._fields if n.endswith("bias")]

    def run(x, biases):
        return reference.composition(
            x, whole._replace(**biases), group_sizes, activation, grouped_matmul
        )

    biases = {name: getattr(whole, name) for name in names}
    _, vjp = jax.vjp(run, x, biases)
    dx, dbiases = vjp(dy)
    nothing = dict.fromkeys(whole._fields)
    return dx, FFNWeights(**{**nothing, **dbiases}), None


_grouped_matmul.defvjp(_grouped_matmul_forward, _grouped_matmul_backward)
_input_gradient.defvjp(_input_gradient_forward, _input_gradient_backward)
_grouped_ffn.defvjp(_grouped_ffn_forward, _grouped_ffn_backward)


def _map(block, x, arrays, group_sizes, width):
    num_rows, num_groups = x.shape[0], group_sizes.shape[0]
    sizes = block_sizes(num_rows, num_groups)
    if num_groups == 1 and isinstance(num_rows, int):
        sizes = (max(1, num_rows),)
    (y,), _ = map_blocks(block, (x,), arrays, group_sizes, (width,), sizes)
    return y[:num_rows]
