"""PyTorch: run and differentiate whole functions."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import torch

from keras_moe.types import Tensor


def compiled(
    function: Callable[..., Any],
    variables: Sequence[keras.Variable],
    written: Sequence[keras.Variable] = (),
) -> Callable[..., Any]:
    """Return the function itself, without gradients.

    `torch.compile` would leave the graph at each bank of experts.
    """
    return torch.no_grad()(function)


def value_and_gradient(
    function: Callable[[Tensor], Tensor], x: Tensor
) -> tuple[Tensor, Tensor]:
    """Use `torch.autograd.grad`, which changes no weight's `.grad`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = function(x)
        if not value.requires_grad:
            return value, torch.zeros_like(x)
        (gradient,) = torch.autograd.grad(
            value, x, allow_unused=True, materialize_grads=True
        )
    return value, gradient
