"""The grouped kernels on PyTorch: split by counts, one matmul an expert.

P rows, sorted by group; E groups; D input and F output width. The stacked
weights are taken apart with `unbind`, whose gradient is one stack; indexing
`kernel[e]` under autograd would zero-fill a whole bank for every expert.
Empty groups are skipped, so their weights are neither read nor multiplied.
"""

import torch

from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.types import Activation, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""

    def linear(rows, matrix):
        return rows @ matrix

    return _map_groups(linear, x, (kernel,), group_sizes, kernel.shape[-1])


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
) -> Tensor:
    """Up, gate, activation and down of one expert before the next one's."""

    def expert(rows, *slices):
        return ffn(rows, FFNWeights(*slices), activation, _linear)

    width = weights.down_kernel.shape[-1]
    return _map_groups(expert, x, weights, group_sizes, width)


def _linear(rows, kernel, bias):
    return rows @ kernel if bias is None else torch.addmm(bias, rows, kernel)


@torch.compiler.disable  # the row counts are data: the host must read them
def _map_groups(expert, x, banks, group_sizes, width):
    """Calls `expert(rows, *slices)` for each non-empty group, in order."""
    if x.is_meta:  # keras infers shapes with tensors that hold no values
        return x.new_empty((x.shape[0], width))
    sizes = group_sizes.tolist()
    rest = x.shape[0] - sum(sizes)
    parts = x.split([*sizes, rest])
    slices = [[None] * len(sizes) if b is None else b.unbind(0) for b in banks]
    # Where every group is empty the first one runs on no rows, so that the
    # weights still receive a gradient (of zeros) rather than none at all.
    active = [e for e, size in enumerate(sizes) if size] or [0]
    outputs = [expert(parts[e], *(s[e] for s in slices)) for e in active]
    return torch.cat([*outputs, x.new_zeros((rest, width))])
