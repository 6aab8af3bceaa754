"""PyTorch, for exports and transforms: one matmul per expert, unrolled.

P rows, sorted by group; E groups; D input and F output width.

`torch.export` cannot trace an autograd function that reads counts on the host,
nor `grouped_mm` of float32. It can trace slices of unknown lengths, and an
expert without rows costs its calls, but does not read its weights. Everything
here consists of PyTorch's own operations, so that `torch.func` and second
derivatives work, too. Under `vmap`, where the sizes differ within a batch, the
reference runs.
"""

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from keras_moe._torch import assume
from keras_moe.kernels import quantized, reference
from keras_moe.kernels.quantized import QuantizedKernel
from keras_moe.kernels.reference import FFNWeights, ffn
from keras_moe.kernels.torch.activation import light_activation
from keras_moe.kernels.torch.quantized import round_rows
from keras_moe.kernels.torch.tracing import is_transformed, known_sizes
from keras_moe.types import Activation, Tensor


def grouped_matmul(
    x: Tensor, kernel: Tensor | QuantizedKernel, group_sizes: Tensor
) -> Tensor:
    """Multiply each row by its group's matrix: `(P, D) -> (P, F)`."""
    if x.is_meta:  # Keras infers shapes with tensors without values
        return x.new_empty((x.shape[0], _stored(kernel).shape[-1]))
    sizes = _sizes(x, group_sizes)
    if sizes is None:
        return reference.grouped_matmul(x, kernel, group_sizes)
    return matmul_of_sizes(sizes, x, kernel)


def matmul_of_sizes(
    sizes: list[int] | Tensor, x: Tensor, kernel: Tensor | QuantizedKernel
) -> Tensor:
    """Run `grouped_matmul` with sizes that are numbers.

    The last size is the number of rows behind the last group.
    """

    def expert(rows: Tensor, own: Tensor | QuantizedKernel) -> Tensor:
        return _linear(rows, own, None)

    width = _stored(kernel).shape[-1]
    return _each_group(expert, x, _by_group(kernel), sizes, width)


def grouped_ffn(
    x: Tensor,
    weights: FFNWeights,
    group_sizes: Tensor,
    activation: Activation,
    remat: bool = False,
) -> Tensor:
    """Run the whole network of one expert before that of the next one."""
    if x.is_meta:
        return x.new_empty((x.shape[0], _stored(weights.down_kernel).shape[-1]))
    sizes = _sizes(x, group_sizes)
    if sizes is None:
        return reference.grouped_ffn(x, weights, group_sizes, activation)
    remat = remat and not is_transformed()  # PyTorch has no hooks there
    return ffn_of_sizes(sizes, activation, x, *weights, remat=remat)


def ffn_of_sizes(
    sizes: list[int] | Tensor,
    activation: Activation,
    x: Tensor,
    *weights: Tensor | QuantizedKernel | None,
    remat: bool = False,
) -> Tensor:
    """Run `grouped_ffn` with such sizes; the weights are in order."""
    function = light_activation(activation)

    def expert(rows: Tensor, own: Sequence[Any]) -> Tensor:
        arguments = rows, FFNWeights(*own), function, _linear
        if remat:
            return checkpoint(ffn, *arguments, use_reentrant=False)
        return ffn(*arguments)

    width = _stored(FFNWeights(*weights).down_kernel).shape[-1]
    parts = zip(*(_by_group(w, len(sizes) - 1) for w in weights), strict=True)
    return _each_group(expert, x, parts, sizes, width)


def _linear(
    rows: Tensor, kernel: Tensor | QuantizedKernel, bias: Tensor | None
) -> Tensor:
    if isinstance(kernel, QuantizedKernel):
        y = quantized.product(rows, kernel, round_rows)
    else:
        y = torch.matmul(rows, kernel)
    return y if bias is None else y + bias


def _stored(bank: Tensor | QuantizedKernel) -> Tensor:
    return bank.values if isinstance(bank, QuantizedKernel) else bank


def _by_group(
    bank: Tensor | QuantizedKernel | None, num_groups: int = 0
) -> Sequence[Any]:
    """Return each group's part of a bank; `num_groups` Nones if it is None."""
    if bank is None:
        return [None] * num_groups
    if isinstance(bank, QuantizedKernel):
        return [quantized.group(bank, e) for e in range(len(bank.values))]
    parts: Sequence[Tensor] = bank.unbind(0)
    return parts


def _with_rest(x: Tensor, group_sizes: Tensor) -> Tensor:
    rest = x.shape[0] - group_sizes.sum()
    return torch.cat([group_sizes, rest[None]])


def _sizes(x: Tensor, group_sizes: Tensor) -> list[int] | Tensor | None:
    """Return the sizes of the groups, and of the rest, as numbers.

    They are a tensor in TorchScript, where numbers would be constants, and
    None under `vmap`.
    """
    sizes = _with_rest(x, group_sizes)
    return sizes if torch.jit.is_tracing() else known_sizes(sizes)


def _each_group(
    expert: Callable[[Tensor, Any], Tensor],
    x: Tensor,
    parts: Iterable[Any],
    sizes: list[int] | Tensor,
    width: int,
) -> Tensor:
    """Call `expert(rows, part)` for each group, in order."""
    *rows, behind = _split(x, sizes)
    outputs = [expert(*pair) for pair in zip(rows, parts, strict=True)]
    return torch.cat([*outputs, behind.new_zeros((behind.shape[0], width))])


def _split(x: Tensor, sizes: list[int] | Tensor) -> Sequence[Tensor]:
    """Return the rows of each group, and those behind the last one."""
    if isinstance(sizes, torch.Tensor):
        ends = torch.cumsum(sizes[:-1].long(), 0)
        bounds = [0, *ends.unbind(0), x.shape[0]]
        return [x[a:b] for a, b in itertools.pairwise(bounds)]
    for size in sizes:
        assume(size >= 0)
    return torch.split(x, sizes)
