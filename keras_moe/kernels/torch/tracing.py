"""PyTorch: whether the operations that run now are traced or transformed.

The hand-written gradients of this package are for `backward` and
`torch.autograd.grad`. `torch.func`, forward-mode differentiation, and a
gradient of a gradient need PyTorch's own operations.
"""

from collections.abc import Callable, Sequence

import torch

from keras_moe._torch import is_batch_of_gradients, transforms_run
from keras_moe.types import Tensor


def eager_on_cpu(x: Tensor) -> bool:
    """Return whether the host may read values and sizes of `x` at no cost.

    It may if `x` is on CPU and is neither traced by a compiler or an export
    nor transformed by `torch.func`.
    """
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_transformed()
    )


def is_exported() -> bool:
    """Return whether a program is traced for an export.

    `torch.export` traces it, or TorchScript, from which Keras makes ONNX.
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Return whether `torch.func` or forward-mode differentiation is active."""
    return not torch.compiler.is_compiling() and transforms_run()


def is_differentiated_again(dy: Tensor) -> bool:
    """Return whether a backward pass must consist of PyTorch's operations.

    It must with `create_graph=True`, and for a batch of gradients at once.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    return is_transformed() or is_batch_of_gradients(dy)


def known_sizes(group_sizes: Tensor) -> list[int] | None:
    """Return the sizes as numbers.

    None under `vmap`, where each element of the batch has its own sizes.
    """
    try:
        sizes: list[int] = group_sizes.tolist()
    except RuntimeError:
        if not is_transformed():
            raise
        return None
    return sizes


def gradients(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor | None],
    dy: Tensor,
) -> list[Tensor | None]:
    """Return gradients that can be differentiated again.

    Args:
        function: Function of the inputs, made of PyTorch's operations.
        inputs: Tensors, as autograd saved them, or None.
        dy: The gradient of the function's output.

    Returns:
        A gradient for each input that requires one, None for the others.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        y = function(*inputs)
    learns = [t is not None and t.requires_grad for t in inputs]
    needed: list[Tensor] = [
        t for t, own in zip(inputs, learns, strict=True) if own
    ]
    found = iter(torch.autograd.grad(y, needed, dy, create_graph=again))
    return [next(found) if own else None for own in learns]
