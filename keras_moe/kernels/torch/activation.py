"""PyTorch: an activation on the rows of one expert, and its gradient.

n rows of one group, F inner width. Autograd inside a backward pass costs a
tenth of a millisecond an expert, and Keras's look before an operation some
of that: what most experts have is named here and asks neither.
"""

from collections.abc import Callable, Sequence

import keras
import torch

from keras_moe.types import Activation, Tensor

_ATEN = torch.ops.aten


def _relu_gradient(d_hidden, x):
    return _ATEN.threshold_backward.default(d_hidden, x, 0)


# Keras's activation by its id, since not all that may be asked for have a
# hash: PyTorch's, and its vjp of the outputs' gradient and x.
KNOWN: dict = {
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


def plain(activation: Activation) -> Activation:
    """Returns PyTorch's own function for Keras's, where it is known."""
    return KNOWN.get(id(activation), (activation,))[0]


def activated(
    activation: Activation, up: Tensor, gate: Tensor | None = None
) -> Tensor:
    """Returns the hidden rows; nobody learns.

    Args:
        activation: elementwise function.
        up, gate: `(n, F)`, before the activation; `gate` where there is one.
    """
    function = plain(activation)
    if gate is None:
        return function(up)
    hidden = function(gate)
    if hidden.data_ptr() == gate.data_ptr():  # it made nothing
        return hidden * up
    return hidden.mul_(up)


def activated_and_vjp(
    activation: Activation, before: Sequence[Tensor]
) -> tuple[Tensor, Callable[[Tensor], Sequence[Tensor]]]:
    """Returns the hidden rows, and their vjp, which may be called once.

    Args:
        activation: elementwise function.
        before: `[up]` or `[up, gate]`, `(n, F)`.

    Returns:
        `(n, F)`, and a function of the gradient of these, which it may write
        over, that returns the gradients of `before`.
    """
    if id(activation) not in KNOWN:
        return _by_autograd(activation, before)
    function, gradient = KNOWN[id(activation)]
    up, *gates = before
    if not gates:
        return function(up), lambda d_hidden: [gradient(d_hidden, up)]
    (gate,) = gates
    hidden = function(gate)

    def vjp(d_hidden):
        d_up = d_hidden * hidden
        return d_up, gradient(d_hidden.mul_(up), gate)

    return hidden * up, vjp


def _by_autograd(activation, before):
    with torch.enable_grad():
        up, *gate = leaves = [b.detach().requires_grad_() for b in before]
        hidden = activation(gate[0]) * up if gate else activation(up)

    def vjp(d_hidden):
        return torch.autograd.grad(hidden, leaves, d_hidden)

    return hidden.detach(), vjp
