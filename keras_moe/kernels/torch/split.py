"""PyTorch on CPU, many rows: split by counts, one matmul per expert.

P rows, sorted by group; E groups; D input and F output width; n rows of one
group. Empty groups are skipped, so that their weights are neither read nor
multiplied, and one expert's hidden rows stay in cache between its matmuls.
The gradient is written by hand so that each expert's part is written directly
into the gradient of the bank. Autograd would make E separate tensors and stack
them, which for many experts costs more than the products. The host reads the
row counts, which on CUDA would make it wait for the device. A gradient that is
differentiated again is that of `unrolled.py`.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any

import torch

from keras_moe.kernels.reference import FFNWeights
from keras_moe.kernels.torch import tracing, unrolled
from keras_moe.kernels.torch.activation import (
    activated,
    activated_and_vjp,
)
from keras_moe.kernels.torch.memory import empty_gradient
from keras_moe.types import Activation, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    if x.is_meta:  # Keras infers shapes with tensors without values
        return x.new_empty((x.shape[0], kernel.shape[-1]))
    return _run(_GroupedMatmul.apply, group_sizes, x, kernel)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Run the whole network of one expert before that of the next one."""
    if x.is_meta:
        return x.new_empty((x.shape[0], weights.down_kernel.shape[-1]))
    if not _learns(x, *weights):
        return _run(_ffn, group_sizes, activation, x, weights)
    return _run(
        _GroupedFFN.apply, group_sizes, activation, not remat, x, *weights
    )


def _learns(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(
        t is not None and t.requires_grad for t in tensors
    )


@torch.compiler.disable  # the row counts are data: the host must read them
def _run(
    function: Callable[..., Tensor], group_sizes: Tensor, *arguments: Any
) -> Tensor:
    return function(group_sizes.tolist(), *arguments)


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, sizes: list[int], x: Tensor, kernel: Tensor
    ) -> Tensor:
        ctx.sizes = sizes
        ctx.save_for_backward(x, kernel)
        y = _empty_rows(x, kernel.shape[-1], sizes)
        for (rows, y_rows), (matrix,) in _groups(sizes, (x, y), (kernel,)):
            torch.mm(rows, matrix, out=y_rows)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, kernel = ctx.saved_tensors
        if tracing.is_differentiated_again(dy):
            sizes = _with_rest(x, ctx.sizes)
            matmul = partial(unrolled.matmul_of_sizes, sizes)
            gradients = tracing.gradients(matmul, (x, kernel), dy)
            return None, *gradients
        dx = _empty_rows(x, x.shape[-1], ctx.sizes)
        dkernel = _empty_bank(kernel, ctx.sizes)
        groups = _groups(ctx.sizes, (x, dy, dx), (kernel.mT, dkernel))
        for (rows, dy_rows, dx_rows), (transposed, dmatrix) in groups:
            torch.mm(dy_rows, transposed, out=dx_rows)
            torch.mm(rows.T, dy_rows, out=dmatrix)
        return None, dx, dkernel


@torch.no_grad()
def _ffn(
    sizes: list[int],
    activation: Activation,
    x: Tensor,
    w: FFNWeights,
    kept: Sequence[Tensor] = (),
) -> Tensor:
    """Run the forward pass.

    `kept`, if not empty, are buffers `(P, F)`, into which the inputs of the
    activation are written.
    """
    y = _empty_rows(x, w.down_kernel.shape[-1], sizes)
    scratch = () if kept else _before_buffers(w, max(sizes, default=0))
    for (rows, y_rows, *before), own in _groups(sizes, (x, y, *kept), w):
        own = FFNWeights(*own)
        before = before or [b[: len(rows)] for b in scratch]
        _before_activation(rows, own, before)
        hidden = activated(activation, *before)
        _linear(hidden, own.down_kernel, own.down_bias, y_rows)
    return y


class _GroupedFFN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        sizes: list[int],
        activation: Activation,
        keeps: bool,
        x: Tensor,
        *weights: Tensor | None,
    ) -> Tensor:
        w = FFNWeights(*weights)
        kept = _before_buffers(w, x.shape[0]) if keeps else []
        ctx.sizes, ctx.activation = sizes, activation
        ctx.save_for_backward(x, *weights, *kept)
        return _ffn(sizes, activation, x, w, kept)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, *weights = ctx.saved_tensors
        count = len(FFNWeights._fields)
        if tracing.is_differentiated_again(dy):
            sizes = _with_rest(x, ctx.sizes)
            ffn = partial(unrolled.ffn_of_sizes, sizes, ctx.activation)
            inputs = x, *weights[:count]
            gradients = tracing.gradients(ffn, inputs, dy)
            return None, None, None, *gradients
        w, kept = FFNWeights(*weights[:count]), weights[count:]
        scratch = [] if kept else _before_buffers(w, max(ctx.sizes))
        dx = _empty_rows(x, x.shape[-1], ctx.sizes)
        dw = [_empty_bank(bank, ctx.sizes) for bank in w]
        groups = _groups(ctx.sizes, (x, dy, dx, *kept), (*w, *dw))
        for (x_rows, dy_rows, dx_rows, *before), banks in groups:
            own, d_own = FFNWeights(*banks[:count]), FFNWeights(*banks[count:])
            if scratch:
                before = [b[: len(x_rows)] for b in scratch]
                _before_activation(x_rows, own, before)
            hidden, vjp = activated_and_vjp(ctx.activation, before)
            _linear_gradient(
                hidden, dy_rows, d_own.down_kernel, d_own.down_bias
            )
            d_up, *d_gate = vjp(dy_rows @ own.down_kernel.T)
            _linear_gradient(x_rows, d_up, d_own.up_kernel, d_own.up_bias)
            torch.mm(d_up, own.up_kernel.T, out=dx_rows)
            if own.gate_kernel is not None:
                _linear_gradient(
                    x_rows, d_gate[0], d_own.gate_kernel, d_own.gate_bias
                )
                dx_rows.addmm_(d_gate[0], own.gate_kernel.T)
        return None, None, None, dx, *dw


def _groups(
    sizes: list[int], rows: Sequence[Tensor], banks: Sequence[Tensor | None]
) -> Iterator[tuple[Sequence[Tensor], Sequence[Any]]]:
    """Yield the parts of each group that has rows.

    These are the group's part of each of the `(P, .)` and of each of the
    `(E, ...)`, None for a bank that is None. All parts of a tensor come from
    one call, since calls from Python are slow between products that fill the
    caches.
    """
    num_rows = sum(sizes)
    parts = zip(*(r[:num_rows].split(sizes) for r in rows), strict=True)
    own = zip(
        *(repeat(None) if b is None else b.unbind() for b in banks),
        strict=False,  # `repeat` has no end
    )
    for size, own_rows, own_banks in zip(sizes, parts, own, strict=True):
        if size:
            yield own_rows, own_banks


def _before_buffers(w: FFNWeights, length: int) -> list[Tensor]:
    """Return uninitialized `[up]`, or `[up, gate]` if gated: `(length, F)`."""
    shape = (length, w.up_kernel.shape[-1])
    banks = [w.up_kernel, w.gate_kernel]
    return [b.new_empty(shape) for b in banks if b is not None]


def _before_activation(
    rows: Tensor, own: FFNWeights, out: Sequence[Tensor]
) -> None:
    _linear(rows, own.up_kernel, own.up_bias, out[0])
    if own.gate_kernel is not None:
        _linear(rows, own.gate_kernel, own.gate_bias, out[1])


def _with_rest(x: Tensor, sizes: list[int]) -> list[int]:
    return [*sizes, len(x) - sum(sizes)]


def _empty_rows(x: Tensor, width: int, sizes: list[int]) -> Tensor:
    """Return `(P, width)` to be filled, with zeros behind the last group."""
    y = x.new_empty((x.shape[0], width))
    num_rows = sum(sizes)
    if num_rows < len(y):
        y[num_rows:] = 0
    return y


def _empty_bank(bank: Tensor | None, sizes: list[int]) -> Tensor | None:
    """Return a bank's gradient to be filled, zero for groups without rows."""
    if bank is None:
        return None
    gradient = empty_gradient(bank)
    for e, size in enumerate(sizes):
        if not size:
            gradient[e] = 0
    return gradient


def _linear(
    rows: Tensor, kernel: Tensor, bias: Tensor | None, out: Tensor
) -> None:
    if bias is None:
        torch.mm(rows, kernel, out=out)
    else:
        torch.addmm(bias, rows, kernel, out=out)


def _linear_gradient(
    rows: Tensor, dy: Tensor, dkernel: Tensor, dbias: Tensor | None
) -> None:
    torch.mm(rows.T, dy, out=dkernel)
    if dbias is not None:
        torch.sum(dy, dim=0, out=dbias)
