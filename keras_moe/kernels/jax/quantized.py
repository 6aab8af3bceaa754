"""JAX, kernels of 8 or 4 bits: blocks of sorted rows, one widened matrix.

P rows, sorted by group; E groups; D input and F output width; B rows per block.

The loop is in `loop.py`. A step slices one group's integers and widens them for
its product. Quantized rows are multiplied as floats that hold integers, since
XLA's integer product on CPU is many times slower.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, TypeAlias

import jax

from keras_moe.kernels import quantized, reference
from keras_moe.kernels.block_sizes import block_sizes
from keras_moe.kernels.jax.loop import Block, map_blocks
from keras_moe.kernels.jax.reverse_only import ReverseOnly
from keras_moe.kernels.quantized import QuantizedKernel, Rounding
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.types import Activation, Tensor

_Static: TypeAlias = tuple[Rounding | None, int | None]
"""The fields of a `QuantizedKernel` that are not arrays."""

_Arrays: TypeAlias = tuple[Tensor, Tensor]
"""The fields of a `QuantizedKernel` that are arrays."""

_AllStatic: TypeAlias = tuple[_Static | None, ...]
"""The first of these for each weight; None if it is not quantized."""


def grouped_matmul(
    x: Tensor, kernel: QuantizedKernel, group_sizes: Tensor
) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    static, arrays = _split(kernel)
    return _grouped_matmul(static, x.shape[-1], x, arrays, group_sizes)


def grouped_ffn(
    x: Tensor, weights: FFNWeights, group_sizes: Tensor, activation: Activation
) -> Tensor:
    """Run the whole network on one block before the next block."""
    parts = [
        _split(bank) if isinstance(bank, QuantizedKernel) else (None, bank)
        for bank in weights
    ]
    static, arrays = zip(*parts, strict=True)
    return _grouped_ffn(activation, static, x, FFNWeights(*arrays), group_sizes)


def _split(kernel: QuantizedKernel) -> tuple[_Static, _Arrays]:
    """Return a kernel's static fields and its arrays."""
    return kernel[2:], kernel[:2]


@partial(ReverseOnly, static=2)
@partial(jax.jit, static_argnums=(0, 1))
def _grouped_matmul(
    static: _Static, depth: int, x: Tensor, arrays: _Arrays, group_sizes: Tensor
) -> Tensor:
    def block(
        rows: Sequence[Tensor], own: _Arrays
    ) -> tuple[Sequence[Tensor], None]:
        kernel = QuantizedKernel(*own, *static)
        return (quantized.product(rows[0], kernel),), None

    return _map(block, x, arrays, group_sizes, arrays[0].shape[-1])


def _grouped_matmul_forward(
    static: _Static, depth: int, x: Tensor, arrays: _Arrays, group_sizes: Tensor
) -> tuple[Tensor, Any]:
    y = _grouped_matmul(static, depth, x, arrays, group_sizes)
    return y, (arrays, group_sizes)


def _grouped_matmul_backward(
    static: _Static, depth: int, residuals: Any, dy: Tensor
) -> tuple[Tensor | None, ...]:
    arrays, group_sizes = residuals
    dx = _input_gradient(static, depth, dy, arrays, group_sizes)
    return dx, None, None


@partial(ReverseOnly, static=2)
@partial(jax.jit, static_argnums=(0, 1))
def _input_gradient(
    static: _Static,
    depth: int,
    dy: Tensor,
    arrays: _Arrays,
    group_sizes: Tensor,
) -> Tensor:
    def block(
        rows: Sequence[Tensor], own: _Arrays
    ) -> tuple[Sequence[Tensor], None]:
        kernel = QuantizedKernel(*own, *static)
        return (quantized.input_gradient(rows[0], kernel, depth),), None

    return _map(block, dy, arrays, group_sizes, depth)


def _input_gradient_forward(
    static: _Static,
    depth: int,
    dy: Tensor,
    arrays: _Arrays,
    group_sizes: Tensor,
) -> tuple[Tensor, Any]:
    dx = _input_gradient(static, depth, dy, arrays, group_sizes)
    return dx, (arrays, group_sizes)


def _input_gradient_backward(
    static: _Static, depth: int, residuals: Any, d_dx: Tensor
) -> tuple[Tensor | None, ...]:
    """Multiply rows that are not rounded: the rounding has no gradient."""
    _, block_rows = static
    d_dy = _grouped_matmul((None, block_rows), depth, d_dx, *residuals)
    return d_dy, None, None


@partial(ReverseOnly, static=2)
@partial(jax.jit, static_argnums=(0, 1))
def _grouped_ffn(
    activation: Activation,
    static: _AllStatic,
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
) -> Tensor:
    def linear(
        rows: Tensor, kernel: QuantizedKernel, bias: Tensor | None
    ) -> Tensor:
        y = quantized.product(rows, kernel)
        return y if bias is None else y + bias

    def block(
        rows: Sequence[Tensor], own: FFNWeights
    ) -> tuple[Sequence[Tensor], None]:
        return (ffn(rows[0], _whole(static, own), activation, linear),), None

    width = weights.down_kernel[0].shape[-1]
    return _map(block, x, weights, group_sizes, width)


def _whole(static: _AllStatic, weights: FFNWeights) -> FFNWeights:
    """Return the weights with their `QuantizedKernel`s."""
    return FFNWeights(
        *(
            QuantizedKernel(arrays[0], arrays[1], *rest) if rest else arrays
            for arrays, rest in zip(weights, static, strict=True)
        )
    )


def _grouped_ffn_forward(
    activation: Activation,
    static: _AllStatic,
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
) -> tuple[Tensor, Any]:
    y = _grouped_ffn(activation, static, x, weights, group_sizes)
    return y, (x, weights, group_sizes)


def _grouped_ffn_backward(
    activation: Activation, static: _AllStatic, residuals: Any, dy: Tensor
) -> tuple[Any, ...]:
    """Differentiate the composition; kernels have no gradient."""
    x, weights, group_sizes = residuals
    whole = _whole(static, weights)
    names = [n for n in whole._fields if n.endswith("bias")]

    def run(x: Tensor, biases: dict[str, Tensor | None]) -> Tensor:
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


def _map(
    block: Block, x: Tensor, arrays: Any, group_sizes: Tensor, width: int
) -> Tensor:
    num_rows, num_groups = x.shape[0], group_sizes.shape[0]
    sizes = block_sizes(num_rows, num_groups)
    if num_groups == 1 and isinstance(num_rows, int):
        sizes = (max(1, num_rows),)
    (y,), _ = map_blocks(block, (x,), arrays, group_sizes, (width,), sizes)
    return y[:num_rows]
