"""PyTorch: whole programs and gradients."""

from collections.abc import Callable, Sequence

import torch

from keras_moe.types import Tensor


def compiled(
    function: Callable, variables: Sequence, written: Sequence = ()
) -> Callable:
    """As it is, and nothing is kept for gradients: `torch.compile` would
    leave the graph at each bank of experts."""
    return torch.no_grad()(function)


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Touches no weight's `.grad`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        if not value.requires_grad:
            return value, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(
            value, x, allow_unused=True, materialize_grads=True
        )
    return value, gradient
