"""PyTorch, in a program that is exported: one matmul an expert, unrolled.

P rows, sorted by group; E groups; D input and F output width.

`torch.export` follows no autograd function that reads counts on the host, and
knows no `grouped_mm` of float32. Slices whose lengths are unknown it follows,
and an expert without rows costs its calls, not its weights.
"""

import itertools

import torch
from torch.utils.checkpoint import checkpoint

from keras_moe.kernels import quantized
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.kernels.torch_quantized import round_rows
from keras_moe.types import Activation, Tensor


def grouped_matmul(
    x: Tensor, kernel: Tensor | QuantizedKernel, group_sizes: Tensor
) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    width = _stored(kernel).shape[-1]

    def expert(rows, own):
        return _linear(rows, own, None)

    return _each_group(expert, x, _by_group(kernel), group_sizes, width)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Up, gate, activation and down of one expert before the next one's."""

    def expert(rows, own):
        arguments = rows, FFNWeights(*own), activation, _linear
        if remat:
            return checkpoint(ffn, *arguments, use_reentrant=False)
        return ffn(*arguments)

    width = _stored(weights.down_kernel).shape[-1]
    num_groups = len(_stored(weights.down_kernel))
    parts = zip(*(_by_group(w, num_groups) for w in weights), strict=True)
    return _each_group(expert, x, parts, group_sizes, width)


def _linear(rows, kernel, bias):
    if isinstance(kernel, QuantizedKernel):
        y = quantized.product(rows, kernel, round_rows)
    else:
        y = torch.matmul(rows, kernel)
    return y if bias is None else y + bias


def _stored(bank):
    return bank.values if isinstance(bank, QuantizedKernel) else bank


def _by_group(bank, num_groups=None):
    """Each group's part of a bank; Nones of a bank that there is not."""
    if bank is None:
        return [None] * num_groups
    if isinstance(bank, QuantizedKernel):
        return [quantized.group(bank, e) for e in range(len(bank.values))]
    return bank.unbind(0)


def _each_group(expert, x, parts, group_sizes, width):
    """Calls `expert(rows, part)` for each group, in order."""
    if x.is_meta:  # keras infers shapes with tensors that hold no values
        return x.new_empty((x.shape[0], width))
    *rows, behind = _split(x, group_sizes)
    outputs = [expert(*pair) for pair in zip(rows, parts, strict=True)]
    return torch.cat([*outputs, behind.new_zeros((behind.shape[0], width))])


def _split(x, group_sizes):
    """The rows of each group, and those behind the last."""
    if torch.jit.is_tracing():  # which takes a number for a constant
        ends = torch.cumsum(group_sizes.long(), 0)
        bounds = [0, *ends.unbind(0), x.shape[0]]
        return [x[a:b] for a, b in itertools.pairwise(bounds)]
    rest = x.shape[0] - group_sizes.sum()
    sizes = torch.cat([group_sizes, rest[None]]).tolist()
    for size in sizes:
        torch._check(size >= 0)
    return torch.split(x, sizes)
