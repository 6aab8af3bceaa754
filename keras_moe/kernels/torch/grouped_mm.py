"""PyTorch, few rows or CUDA: the library's own grouped matmul.

P rows, sorted by group; E groups; D input and F output width.

`torch.nn.functional.grouped_mm` multiplies by a whole bank in one call, and on
CUDA needs no count on the host. It requires row strides that are multiples of
16 bytes, so that odd widths are padded here, and it does not write the rows
behind the last group. Its speed on CUDA was not measured.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch.utils.checkpoint import checkpoint

from keras_moe.kernels import reference
from keras_moe.kernels.reference import FFNWeights
from keras_moe.kernels.torch import activation as activations
from keras_moe.types import Activation, Tensor

ALIGNMENT_BYTES = 16

_Matmul: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`mm(rows, kernel)`, which multiplies each row by its group's matrix."""


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    if x.is_meta:  # Keras infers shapes with tensors without values
        return x.new_empty((x.shape[0], kernel.shape[-1]))
    return _run(x, group_sizes, lambda x, mm: mm(x, kernel))


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Run all rows through up, gate, and activation, and then through down."""
    if x.is_meta:
        return x.new_empty((x.shape[0], weights.down_kernel.shape[-1]))

    def ffn(x: Tensor, mm: _Matmul) -> Tensor:
        def linear(rows: Tensor, kernel: Tensor, bias: Tensor | None) -> Tensor:
            y = mm(rows, kernel)
            if bias is None:
                return y
            return reference.add_grouped_bias(y, bias, group_sizes)

        function = activations.light_activation(activation)
        return reference.ffn(x, weights, function, linear)

    if remat:
        return checkpoint(_run, x, group_sizes, ffn, use_reentrant=False)
    return _run(x, group_sizes, ffn)


@torch.compiler.disable  # if compiled, grouped_mm refuses float32 on CPU
def _run(
    x: Tensor,
    group_sizes: Tensor,
    function: Callable[[Tensor, _Matmul], Tensor],
) -> Tensor:
    """Return `function(x, mm)`, with zeros behind the last group."""
    ends = torch.cumsum(group_sizes, 0, dtype=torch.int32)
    if x.device.type == "cpu" and int(ends[-1]) == x.shape[0]:
        return function(x, lambda rows, kernel: _matmul(rows, kernel, ends))
    mine = torch.arange(x.shape[0], device=x.device)[:, None] < ends[-1]
    x = torch.where(mine, x, 0)
    y = function(x, lambda rows, kernel: _matmul(rows, kernel, ends))
    return torch.where(mine, y, 0)


def _matmul(rows: Tensor, kernel: Tensor, ends: Tensor) -> Tensor:
    depth, width = kernel.shape[1:]
    step = ALIGNMENT_BYTES // rows.element_size()
    if depth % step or width % step:
        rows = torch.nn.functional.pad(rows, (0, -depth % step))
        kernel = torch.nn.functional.pad(
            kernel, (0, -width % step, 0, -depth % step)
        )
    y = torch.nn.functional.grouped_mm(rows.contiguous(), kernel, offs=ends)
    if y.requires_grad:
        y = _ContiguousGradient.apply(y)
    return y if y.shape[1] == width else y[:, :width]


class _ContiguousGradient(torch.autograd.Function):
    """The identity, whose gradient is contiguous as grouped_mm needs it."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        return dy.contiguous()
