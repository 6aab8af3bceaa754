"""PyTorch: what traces or transforms the operations that run now.

The hand-written gradients of this package are for `backward` and
`torch.autograd.grad`. `torch.func` and forward-mode differentiation follow
PyTorch's own operations alone, and so does a gradient of a gradient.
"""

from collections.abc import Callable, Sequence

import torch

from keras_moe._torch import is_batch_of_gradients, transforms_run
from keras_moe.types import Tensor


def eager_on_cpu(x) -> bool:
    """Whether the host may look at values and sizes of `x` and lose nothing:
    neither a compiler or an export traces it, nor is it queued elsewhere, nor
    does `torch.func` transform what is made of it."""
    return (
        x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not is_transformed()
    )


def is_exported() -> bool:
    """Whether a program is traced that is kept: by `torch.export`, or by
    TorchScript, from which Keras makes ONNX."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def is_transformed() -> bool:
    """Return whether `torch.func` (`grad`, `vmap`, `jvp` ...) or forward-mode
    differentiation is in effect."""
    return not torch.compiler.is_compiling() and transforms_run()


def is_differentiated_again(dy: Tensor) -> bool:
    """Return whether a backward pass must be made of PyTorch's operations:
    under `create_graph=True`, and of a batch of gradients at once."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return torch.is_grad_enabled()
    return is_transformed() or is_batch_of_gradients(dy)


def known_sizes(group_sizes: Tensor) -> list[int] | None:
    """Return the sizes as numbers, or None under `vmap`, where each batch
    element has its own."""
    try:
        return group_sizes.tolist()
    except RuntimeError:
        if not is_transformed():
            raise
        return None


def gradients(
    function: Callable[..., Tensor], inputs: Sequence, dy: Tensor
) -> list:
    """Return gradients that can be differentiated again.

    Args:
        function: of the inputs, made of PyTorch's operations.
        inputs: tensors, as autograd saved them; or None.
        dy: the gradient of the function's output.

    Returns:
        A gradient for each input that requires one, None for the others.
    """
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        y = function(*inputs)
    learns = [t is not None and t.requires_grad for t in inputs]
    needed = [t for t, own in zip(inputs, learns, strict=True) if own]
    found = iter(torch.autograd.grad(y, needed, dy, create_graph=again))
    return [next(found) if own else None for own in learns]
