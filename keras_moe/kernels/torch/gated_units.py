"""PyTorch: `ClippedSwiGLU` in few passes over memory, and its gradient.

n rows; F inner width. PyTorch runs one operation after the other, so that each
of them reads and writes all rows. Two of its functions do more than their names
tell:

- `softplus_backward(g, g, alpha, threshold)` is `g * sigmoid(alpha * g)`.
- `hardtanh_backward(d, x, low, high)` is `d` where `low < x < high`, else 0.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from keras_moe.kernels.gated_units import ClippedSwiGLU
from keras_moe.kernels.torch import tracing
from keras_moe.types import GatedUnit, Tensor

# Above it, sigmoid(x) is 1 in float64.
THRESHOLD = 40.0

_ATEN = torch.ops.aten
_Parts: TypeAlias = tuple[Tensor, Tensor, Tensor]


class LightClippedSwiGLU(GatedUnit):
    """Computes a `ClippedSwiGLU`, with a gradient that keeps gate and up."""

    def __init__(self, unit: ClippedSwiGLU) -> None:
        self.unit = unit

    def __call__(self, gate: Tensor, up: Tensor) -> Tensor:
        """Return the hidden units."""
        if (
            torch.compiler.is_compiling()
            or tracing.is_exported()
            or tracing.is_transformed()
        ):
            return _composed(self.unit, gate, up)
        if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
            return _Clipped.apply(self.unit, gate, up)
        return hidden_units(self.unit, gate, up)


def hidden_units(unit: ClippedSwiGLU, gate: Tensor, up: Tensor) -> Tensor:
    """Return the hidden rows, without a gradient."""
    _, swish, up = _parts(unit, gate, up)
    return _product(unit, swish, up, out=up)


def hidden_units_and_vjp(
    unit: ClippedSwiGLU, gate: Tensor, up: Tensor
) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]:
    """Return the hidden rows and their vjp, which may be called once.

    The vjp returns the gradients of `up` and of `gate`.
    """
    parts = _parts(unit, gate, up)
    hidden = _product(unit, *parts[1:])

    def vjp(d_hidden: Tensor) -> Sequence[Tensor]:
        return _gradients(unit, gate, up, parts, d_hidden)

    return hidden, vjp


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, unit: ClippedSwiGLU, gate: Tensor, up: Tensor
    ) -> Tensor:
        ctx.unit = unit
        ctx.save_for_backward(gate, up)
        return hidden_units(unit, gate, up)

    @staticmethod
    def backward(ctx: Any, d_hidden: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if tracing.is_differentiated_again(d_hidden):
            composed = functools.partial(_composed, ctx.unit)
            return None, *tracing.gradients(composed, (gate, up), d_hidden)
        parts = _parts(ctx.unit, gate, up)
        d_up, d_gate = _gradients(ctx.unit, gate, up, parts, d_hidden)
        return None, d_gate, d_up


def _composed(unit: ClippedSwiGLU, gate: Tensor, up: Tensor) -> Tensor:
    """Return the hidden rows by operations that any trace can follow."""
    gate = gate.clamp(max=unit.limit)
    swish = gate * torch.sigmoid(unit.alpha * gate)
    return swish * (up.clamp(-unit.limit, unit.limit) + unit.up_offset)


def _parts(unit: ClippedSwiGLU, gate: Tensor, up: Tensor) -> _Parts:
    """Return the clipped gate, its swish, and the factor of `_product`."""
    gate = gate.clamp(max=unit.limit)
    if unit.alpha == 1:
        swish = torch.nn.functional.silu(gate)
    else:
        swish = _ATEN.softplus_backward.default(
            gate, gate, unit.alpha, THRESHOLD
        )
    up = up.clamp(-unit.limit, unit.limit)
    if unit.up_offset not in (0, 1):
        up.add_(unit.up_offset)
    return gate, swish, up


def _product(
    unit: ClippedSwiGLU, x: Tensor, up: Tensor, out: Tensor | None = None
) -> Tensor:
    """Return `x` times up and its offset."""
    if unit.up_offset == 1:
        return torch.addcmul(x, x, up, out=out)
    return torch.mul(x, up, out=out)


def _gradients(
    unit: ClippedSwiGLU,
    gate: Tensor,
    up: Tensor,
    parts: _Parts,
    d_hidden: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return the gradients of `up` and of `gate`; overwrites `parts`."""
    clipped, swish, factor = parts
    bound = _above(unit.limit, gate.dtype)
    d_up = _ATEN.hardtanh_backward.default(
        swish.mul_(d_hidden), up, -bound, bound
    )
    d_swish = _product(unit, d_hidden, factor, out=factor)
    if unit.alpha != 1:
        clipped.mul_(unit.alpha)
    d_gate = _ATEN.silu_backward.default(d_swish, clipped)
    return d_up, _ATEN.hardtanh_backward.default(d_gate, gate, -math.inf, bound)


@functools.cache
def _above(limit: float, dtype: torch.dtype) -> float:
    """Return the next number, so that the limit itself is not clipped."""
    if dtype == torch.float64:
        return math.nextafter(limit, math.inf)
    return float(np.nextafter(np.float32(limit), np.float32("inf")))
