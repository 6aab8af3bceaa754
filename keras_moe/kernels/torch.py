"""The grouped kernels on PyTorch: split by counts, one matmul an expert.

P rows, sorted by group; E groups; D input and F output width; n rows of one
group. Empty groups are skipped, so their weights are neither read nor
multiplied. The gradient is written by hand for one reason: each expert's part
goes straight to its place in the bank's gradient. Autograd would make E
separate tensors and stack them, which for many experts costs more than the
products.
"""

import torch
from torch.autograd.function import once_differentiable

from keras_moe.kernels.reference import FFNWeights
from keras_moe.types import Activation, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    if x.is_meta:  # keras infers shapes with tensors that hold no values
        return x.new_empty((x.shape[0], kernel.shape[-1]))
    return _run(_GroupedMatmul, group_sizes, x, kernel)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
) -> Tensor:
    """Up, gate, activation and down of one expert before the next one's."""
    if x.is_meta:
        return x.new_empty((x.shape[0], weights.down_kernel.shape[-1]))
    return _run(_GroupedFFN, group_sizes, activation, x, *weights)


@torch.compiler.disable  # the row counts are data: the host must read them
def _run(function, group_sizes, *arguments):
    return function.apply(group_sizes.tolist(), *arguments)


class _GroupedMatmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sizes, x, kernel):
        ctx.sizes = sizes
        ctx.save_for_backward(x, kernel)
        y = _empty_rows(x, kernel.shape[-1], sizes)
        for e, rows in _groups(sizes):
            torch.mm(x[rows], kernel[e], out=y[rows])
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, kernel = ctx.saved_tensors
        dx = _empty_rows(x, x.shape[-1], ctx.sizes)
        dkernel = _empty_bank(kernel, ctx.sizes)
        for e, rows in _groups(ctx.sizes):
            torch.mm(dy[rows], kernel[e].T, out=dx[rows])
            torch.mm(x[rows].T, dy[rows], out=dkernel[e])
        return None, dx, dkernel


class _GroupedFFN(torch.autograd.Function):
    @staticmethod
    def forward(ctx, sizes, activation, x, *weights):
        w = FFNWeights(*weights)
        ctx.sizes, ctx.activation = sizes, activation
        y = _empty_rows(x, w.down_kernel.shape[-1], sizes)
        up = x.new_empty((x.shape[0], w.up_kernel.shape[-1]))
        gate = None if w.gate_kernel is None else torch.empty_like(up)
        for e, rows in _groups(sizes):
            _linear(x[rows], w.up_kernel, w.up_bias, e, up[rows])
            hidden = up[rows]
            if gate is None:
                hidden = activation(hidden)
            else:
                _linear(x[rows], w.gate_kernel, w.gate_bias, e, gate[rows])
                hidden = activation(gate[rows]) * hidden
            _linear(hidden, w.down_kernel, w.down_bias, e, y[rows])
        ctx.save_for_backward(x, up, gate, *weights)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, up, gate, *weights = ctx.saved_tensors
        w = FFNWeights(*weights)
        dx = _empty_rows(x, x.shape[-1], ctx.sizes)
        dw = FFNWeights(*(_empty_bank(b, ctx.sizes) for b in w))
        for e, rows in _groups(ctx.sizes):
            before = (up[rows],) if gate is None else (up[rows], gate[rows])
            hidden, vjp = _hidden(ctx.activation, before)
            _add_linear_gradient(
                hidden, dy[rows], dw.down_kernel, dw.down_bias, e
            )
            d_up, *d_gate = vjp(dy[rows] @ w.down_kernel[e].T)
            _add_linear_gradient(x[rows], d_up, dw.up_kernel, dw.up_bias, e)
            torch.mm(d_up, w.up_kernel[e].T, out=dx[rows])
            if d_gate:
                _add_linear_gradient(
                    x[rows], d_gate[0], dw.gate_kernel, dw.gate_bias, e
                )
                dx[rows].addmm_(d_gate[0], w.gate_kernel[e].T)
        return None, None, dx, *dw


def _groups(sizes):
    """Yields the index and the rows of every group that has any."""
    start = 0
    for e, size in enumerate(sizes):
        if size:
            yield e, slice(start, start + size)
        start += size


def _empty_rows(x, width, sizes):
    """`(P, width)` to be filled, zero behind the last group."""
    y = x.new_empty((x.shape[0], width))
    y[sum(sizes) :] = 0
    return y


def _empty_bank(bank, sizes):
    """A bank's gradient to be filled, zero for groups without rows."""
    if bank is None:
        return None
    gradient = torch.empty_like(bank, memory_format=torch.contiguous_format)
    for e, size in enumerate(sizes):
        if not size:
            gradient[e] = 0
    return gradient


def _linear(rows, kernel, bias, e, out):
    if bias is None:
        torch.mm(rows, kernel[e], out=out)
    else:
        torch.addmm(bias[e], rows, kernel[e], out=out)


def _add_linear_gradient(rows, dy, dkernel, dbias, e):
    torch.mm(rows.T, dy, out=dkernel[e])
    if dbias is not None:
        torch.sum(dy, dim=0, out=dbias[e])


def _hidden(activation, before):
    """Returns the hidden rows of `up` (and `gate`), and their vjp."""
    with torch.enable_grad():
        leaves = [b.detach().requires_grad_() for b in before]
        up, *gate = leaves
        hidden = activation(gate[0]) * up if gate else activation(up)

    def vjp(d_hidden):
        return torch.autograd.grad(hidden, leaves, d_hidden)

    return hidden.detach(), vjp
