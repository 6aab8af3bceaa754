"""PyTorch: activations of the rows of one expert, and their gradients.

n rows of one group, F inner width. Autograd inside a backward pass adds
overhead per expert, and so do Keras's checks before an operation. The most
common activations are listed here and need neither.
"""

from collections.abc import Callable, Sequence

import keras
import torch

from keras_moe.kernels.gated_units import ClippedSwiGLU
from keras_moe.kernels.reference import hidden_units
from keras_moe.kernels.torch import gated_units
from keras_moe.types import Activation, GatedUnit, Tensor

_ATEN = torch.ops.aten


def _relu_gradient(d_hidden: Tensor, x: Tensor) -> Tensor:
    return _ATEN.threshold_backward.default(d_hidden, x, 0)


# PyTorch's function for Keras's activation, and its vjp of the gradient of the
# outputs and of x. The key is the id, since some activations have no hash.
KNOWN: dict[int, tuple[Activation, Callable[[Tensor, Tensor], Tensor]]] = {
    id(keras.activations.silu): (
        torch.nn.functional.silu,
        _ATEN.silu_backward.default,
    ),
    id(keras.activations.gelu): (
        torch.nn.functional.gelu,
        _ATEN.gelu_backward.default,
    ),
    id(keras.activations.relu): (torch.relu, _relu_gradient),
}


def light_activation(activation: Activation) -> Activation:
    """Return PyTorch's function for Keras's activation, if it is known."""
    if type(activation) is ClippedSwiGLU:
        return gated_units.LightClippedSwiGLU(activation)
    known = KNOWN.get(id(activation))
    return activation if known is None else known[0]


def activated(
    activation: Activation, up: Tensor, gate: Tensor | None = None
) -> Tensor:
    """Return the hidden rows, without a gradient.

    The memory of `up` may be reused.

    Args:
        activation: Elementwise function, or a `GatedUnit`.
        up, gate: `(n, F)`, before the activation. `gate` is None for experts
            without a gate.
    """
    if type(activation) is ClippedSwiGLU:
        return gated_units.hidden_units(activation, gate, up)
    if isinstance(activation, GatedUnit):
        return activation(gate, up)
    function = light_activation(activation)
    if gate is None:
        return function(up)
    hidden = function(gate)
    if hidden.data_ptr() == gate.data_ptr():  # the activation is the identity
        return hidden * up
    return hidden.mul_(up)


def activated_and_vjp(
    activation: Activation, before: Sequence[Tensor]
) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]:
    """Return the hidden rows and their vjp, which may be called once.

    Args:
        activation: Elementwise function, or a `GatedUnit`.
        before: `[up]` or `[up, gate]`, `(n, F)`.

    Returns:
        The hidden rows `(n, F)`, and a function of their gradient that returns
        the gradients of `before` and may overwrite its argument.
    """
    up, *gates = before
    if type(activation) is ClippedSwiGLU:
        (gate,) = gates
        return gated_units.hidden_units_and_vjp(activation, gate, up)
    if id(activation) not in KNOWN:
        return _by_autograd(activation, before)
    function, gradient = KNOWN[id(activation)]
    if not gates:
        return function(up), lambda d_hidden: [gradient(d_hidden, up)]
    (gate,) = gates
    hidden = function(gate)

    def vjp(d_hidden: Tensor) -> Sequence[Tensor]:
        d_up = d_hidden * hidden
        return d_up, gradient(d_hidden.mul_(up), gate)

    return hidden * up, vjp


def _by_autograd(
    activation: Activation, before: Sequence[Tensor]
) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]:
    with torch.enable_grad():
        leaves = [b.detach().requires_grad_() for b in before]
        hidden = hidden_units(activation, *leaves)

    def vjp(d_hidden: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(hidden, leaves, d_hidden)

    return hidden.detach(), vjp
