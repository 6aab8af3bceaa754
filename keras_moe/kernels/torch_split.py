"""PyTorch, large banks of rows: split by counts, one matmul an expert.

P rows, sorted by group; E groups; D input and F output width; n rows of one
group. Empty groups are skipped, so their weights are neither read nor
multiplied, and one expert's hidden rows stay in cache between its matmuls.
The gradient is written by hand for one reason: each expert's part goes
straight to its place in the bank's gradient. Autograd would make E separate
tensors and stack them, which for many experts costs more than the products.
The row counts are read on the host: on CUDA this would stop the queue.
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
    remat: bool = False,
) -> Tensor:
    """Up, gate, activation and down of one expert before the next one's."""
    if x.is_meta:
        return x.new_empty((x.shape[0], weights.down_kernel.shape[-1]))
    tensors = [x, *(w for w in weights if w is not None)]
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    keeps = learns and not remat
    return _run(_GroupedFFN, group_sizes, activation, keeps, x, *weights)


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
    def forward(ctx, sizes, activation, keeps, x, *weights):
        w = FFNWeights(*weights)
        ctx.sizes, ctx.activation = sizes, activation
        y = _empty_rows(x, w.down_kernel.shape[-1], sizes)
        kept = _before_buffers(x, w, x.shape[0]) if keeps else []
        scratch = [] if keeps else _before_buffers(x, w, max(sizes, default=0))
        for e, rows in _groups(sizes):
            length = rows.stop - rows.start
            before = [b[rows] for b in kept] or [b[:length] for b in scratch]
            _before_activation(x[rows], w, e, before)
            hidden = _hidden(activation, *before)
            _linear(hidden, w.down_kernel, w.down_bias, e, y[rows])
        ctx.save_for_backward(x, *weights, *kept)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, dy):
        x, *weights = ctx.saved_tensors
        count = len(FFNWeights._fields)
        w, kept = FFNWeights(*weights[:count]), weights[count:]
        scratch = [] if kept else _before_buffers(x, w, max(ctx.sizes))
        dx = _empty_rows(x, x.shape[-1], ctx.sizes)
        dw = FFNWeights(*(_empty_bank(b, ctx.sizes) for b in w))
        for e, rows in _groups(ctx.sizes):
            length = rows.stop - rows.start
            before = [b[rows] for b in kept] or [b[:length] for b in scratch]
            if scratch:
                _before_activation(x[rows], w, e, before)
            hidden, vjp = _hidden_and_vjp(ctx.activation, before)
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
        return None, None, None, dx, *dw


def _before_buffers(x, w, length):
    """Uninitialised `[up]`, or `[up, gate]` of gated experts, `(length, F)`."""
    count = 1 if w.gate_kernel is None else 2
    shape = (length, w.up_kernel.shape[-1])
    return [x.new_empty(shape) for _ in range(count)]


def _before_activation(rows, w, e, out):
    _linear(rows, w.up_kernel, w.up_bias, e, out[0])
    if w.gate_kernel is not None:
        _linear(rows, w.gate_kernel, w.gate_bias, e, out[1])


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


def _hidden(activation, up, gate=None):
    return activation(up) if gate is None else activation(gate) * up


def _hidden_and_vjp(activation, before):
    """Returns the hidden rows of `[up]` or `[up, gate]`, and their vjp."""
    with torch.enable_grad():
        leaves = [b.detach().requires_grad_() for b in before]
        hidden = _hidden(activation, *leaves)

    def vjp(d_hidden):
        return torch.autograd.grad(hidden, leaves, d_hidden)

    return hidden.detach(), vjp
