"""PyTorch, in a program that is exported: one matmul an expert, unrolled.

P rows, sorted by group; E groups; D input and F output width.

`torch.export` follows no autograd function that reads counts on the host, and
knows no `grouped_mm` of float32. Slices whose lengths are unknown it follows,
and an expert without rows costs its calls, not its weights.
"""

import torch
from torch.utils.checkpoint import checkpoint

from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.types import Activation, Tensor


def grouped_matmul(x: Tensor, kernel: Tensor, group_sizes: Tensor) -> Tensor:
    """Multiplies each row by its group's matrix: `(P, D) -> (P, F)`."""
    return _map_groups(
        torch.matmul, x, (kernel,), group_sizes, kernel.shape[-1]
    )


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Up, gate, activation and down of one expert before the next one's."""
    banks = {n: w for n, w in weights._asdict().items() if w is not None}

    def expert(rows, *slices):
        own = FFNWeights(**dict(zip(banks, slices, strict=True)))
        if remat:
            return checkpoint(ffn, rows, own, activation, use_reentrant=False)
        return ffn(rows, own, activation)

    width = weights.down_kernel.shape[-1]
    return _map_groups(expert, x, banks.values(), group_sizes, width)


def _map_groups(expert, x, banks, group_sizes, width):
    """Calls `expert(rows, *slices)` for each group, in order."""
    if x.is_meta:  # keras infers shapes with tensors that hold no values
        return x.new_empty((x.shape[0], width))
    rest = x.shape[0] - group_sizes.sum()
    sizes = torch.cat([group_sizes, rest[None]]).tolist()
    for size in sizes:
        torch._check(size >= 0)
    *parts, behind = torch.split(x, sizes)
    slices = zip(*(bank.unbind(0) for bank in banks), strict=True)
    outputs = [
        expert(rows, *own) for rows, own in zip(parts, slices, strict=True)
    ]
    return torch.cat([*outputs, behind.new_zeros((behind.shape[0], width))])
