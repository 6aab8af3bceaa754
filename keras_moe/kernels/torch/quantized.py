"""PyTorch, kernels of 8 or 4 bits: split by counts, one widened matrix.

P rows, sorted by group; E groups; D input and F output width; n rows of one
group. A matrix is widened into memory that the next group reuses, so that it
stays in cache and the bank is read as bytes. On CPU, quantized rows and a
kernel without blocks are multiplied as integers, which is several times as
fast if the processor has instructions for it (VNNI, AMX).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from keras_moe import _torch
from keras_moe.kernels import quantized
from keras_moe.kernels.quantized import QuantizedKernel, Rounding
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.kernels.torch.activation import light_activation
from keras_moe.kernels.torch.tracing import is_differentiated_again
from keras_moe.types import Activation, Tensor


def grouped_matmul(
    x: Tensor, kernel: QuantizedKernel, group_sizes: Tensor
) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    width = kernel.values.shape[-1]
    if x.is_meta:  # Keras infers shapes with tensors without values
        return x.new_empty((x.shape[0], width))
    scratch = _Scratch(_learns(x))

    def expert(rows: Tensor, e: int) -> Tensor:
        return scratch.product(rows, quantized.group(kernel, e))

    return _each_group(x, group_sizes, width, expert, scratch)


def grouped_ffn(
    x: Tensor, weights: FFNWeights, group_sizes: Tensor, activation: Activation
) -> Tensor:
    """Run the whole network of one expert before that of the next one."""
    width = weights.down_kernel.values.shape[-1]
    if x.is_meta:
        return x.new_empty((x.shape[0], width))
    biases = (w for w in weights if isinstance(w, torch.Tensor))
    scratch = _Scratch(_learns(x, *biases))
    banks = [_by_group(bank) for bank in weights]
    function = light_activation(activation)

    def linear(
        rows: Tensor, kernel: QuantizedKernel, bias: Tensor | None
    ) -> Tensor:
        y = scratch.product(rows, kernel)
        if bias is None:
            return y
        return y + bias if scratch.learns else y.add_(bias)

    def expert(rows: Tensor, e: int) -> Tensor:
        own = FFNWeights(*(None if b is None else b(e) for b in banks))
        return ffn(rows, own, function, linear)

    return _each_group(x, group_sizes, width, expert, scratch)


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def _by_group(
    bank: Tensor | QuantizedKernel | None,
) -> Callable[[int], Any] | None:
    """Return a function from the number of a group to its part of a bank."""
    if isinstance(bank, QuantizedKernel):
        return lambda e: quantized.group(bank, e)
    # Indexing under autograd would fill a whole bank with zeros each time.
    return None if bank is None else bank.unbind().__getitem__


@torch.compiler.disable  # the row counts are data: the host must read them
def _each_group(
    x: Tensor,
    group_sizes: Tensor,
    width: int,
    expert: Callable[[Tensor, int], Tensor],
    scratch: "_Scratch",
) -> Tensor:
    sizes = group_sizes.tolist()
    *parts, rest = x.split([*sizes, x.shape[0] - sum(sizes)])
    busy = [e for e, size in enumerate(sizes) if size]
    if scratch.learns:
        # At least one expert runs, so that gradients are zero, not missing.
        outputs = [expert(parts[e], e) for e in busy or [0]]
        return torch.cat([*outputs, x.new_zeros((len(rest), width))])
    y = x.new_zeros((x.shape[0], width))
    places = y.split([*sizes, len(rest)])
    for e in busy:
        scratch.products = 0
        places[e].copy_(expert(parts[e], e))
    return y


class _Scratch:
    """Products of one call, with memory that they share.

    learns: bool. Whether outputs are kept for a gradient. Otherwise they, too,
        are in memory that the next group reuses.
    """

    def __init__(self, learns: bool) -> None:
        self.learns, self.products = learns, 0
        self.memory: dict[tuple[int | str, torch.dtype], Tensor] = {}

    def product(self, rows: Tensor, kernel: QuantizedKernel) -> Tensor:
        """Multiply rows by one group's matrix: `(n, D) -> (n, F)`."""
        if self.learns:
            return _Product.apply(rows, kernel, self)
        shape = (len(rows), kernel.values.shape[-1])
        self.products += 1
        out = self.take(self.products, shape, rows.dtype, rows.device)
        return _multiply(rows, kernel, self, out)

    def take(
        self,
        purpose: int | str,
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
    ) -> Tensor:
        """Return uninitialized memory, the same for the same purpose."""
        size, key = math.prod(shape), (purpose, dtype)
        if key not in self.memory or self.memory[key].numel() < size:
            self.memory[key] = torch.empty(size, dtype=dtype, device=device)
        return self.memory[key][:size].view(shape)

    def integers(self, kernel: QuantizedKernel, depth: int) -> Tensor:
        """Return one group's values as int8 `(D, F)`."""
        if not kernel.packed:
            return kernel.values
        half, width = kernel.values.shape
        shape, device = (2 * half, width), kernel.values.device
        matrix = self.take("integers", shape, torch.int8, device)
        low = torch.bitwise_and(kernel.values, 15).view(torch.int8)
        high = torch.bitwise_right_shift(kernel.values, 4).view(torch.int8)
        torch.sub(low, quantized.ZERO_NIBBLE, out=matrix[:half])
        torch.sub(high, quantized.ZERO_NIBBLE, out=matrix[half:])
        return matrix[:depth]

    def widened(
        self, kernel: QuantizedKernel, depth: int, dtype: torch.dtype
    ) -> Tensor:
        """Widen one group's matrix, as `quantized.widen` does."""
        values = self.integers(kernel, depth)
        matrix = self.take("floats", values.shape, dtype, values.device)
        matrix.copy_(values)
        if kernel.block_rows is not None:
            for g, scale in enumerate(kernel.scale):
                start = g * kernel.block_rows
                matrix[start : start + kernel.block_rows] *= scale
        return matrix


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, kernel: QuantizedKernel, scratch: _Scratch
    ) -> Tensor:
        ctx.kernel, ctx.scratch, ctx.depth = kernel, scratch, rows.shape[-1]
        out = rows.new_empty((len(rows), kernel.values.shape[-1]))
        return _multiply(rows, kernel, scratch, out)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        if is_differentiated_again(dy):
            dx = quantized.input_gradient(dy, ctx.kernel, ctx.depth)
            return dx, None, None
        if ctx.kernel.block_rows is None:
            dy = dy * ctx.kernel.scale
        matrix = ctx.scratch.widened(ctx.kernel, ctx.depth, dy.dtype)
        return dy @ matrix.T, None, None


def _multiply(
    rows: Tensor, kernel: QuantizedKernel, scratch: _Scratch, out: Tensor
) -> Tensor:
    """Write the result of `quantized.product` into `out`."""
    depth = rows.shape[-1]
    rows, divisor = round_rows(rows, kernel.rounding)
    if _is_integer_product(rows, kernel):
        sums = scratch.take("sums", out.shape, torch.int32, out.device)
        matrix = scratch.integers(kernel, depth)
        out.copy_(_torch.integer_matmul(rows.to(torch.int8), matrix, sums))
    else:
        torch.mm(rows, scratch.widened(kernel, depth, rows.dtype), out=out)
    if kernel.block_rows is None:
        out *= kernel.scale
    return out if divisor is None else out.div_(divisor)


def round_rows(
    rows: Tensor, rounding: Rounding | None
) -> tuple[Tensor, Tensor | None]:
    """Round rows as `quantized.round_rows` does, in fewer passes.

    `torch.export` need not know the number of rows.
    """
    if rounding is None:
        return rows, None
    largest = torch.linalg.vector_norm(rows, math.inf, dim=-1, keepdim=True)
    divisor = rounding.high / (largest + rounding.epsilon)
    integers = (rows * divisor).round_()
    return integers.clamp_(rounding.low, rounding.high), divisor


def _is_integer_product(rows: Tensor, kernel: QuantizedKernel) -> bool:
    """Return whether the library multiplies these rows as integers.

    CUDA has other rules for sizes, and was not measured.
    """
    return (
        kernel.rounding is not None
        and kernel.block_rows is None
        and -128 <= kernel.rounding.low <= kernel.rounding.high <= 127
        and rows.device.type == "cpu"
        and _torch.has_integer_matmul()
    )
