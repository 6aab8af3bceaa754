"""All that the package uses of PyTorch's private API.

`tests/package/private_api/test_private_torch.py` asserts the effect of each
name. Several functions run in every call of a block: the names that they use
are looked up once, here.
"""

from collections.abc import Callable

import torch
from torch.autograd import forward_ad

_transforms_are_active = torch._C._are_functorch_transforms_active
_graph_task_id = torch._C._current_graph_task_id
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_all_modules_have_hooks: Callable[[], bool] = (
    torch.nn.modules.module._has_any_global_hook
)


def has_hooks(module: torch.nn.Module) -> bool:
    """Return whether calls of a module, or their gradients, run any hooks.

    Hooks are functions that were registered on the module or on all modules.
    """
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _all_modules_have_hooks()
    )


def is_in_backward() -> bool:
    """Return whether this runs inside of `backward`."""
    return _graph_task_id() != -1  # the number of the backward pass


def saves_through_hooks() -> bool:
    """Return whether tensors that are saved for gradients go through hooks.

    They do inside of a checkpoint that is not reentrant.
    """
    return _saved_tensors_hooks(False) is not None


def transforms_run() -> bool:
    """Return whether `torch.func` or forward-mode differentiation is active."""
    return _transforms_are_active() or forward_ad._current_level >= 0


def is_batch_of_gradients(dy: torch.Tensor) -> bool:
    """Return whether a gradient holds those of a batch of outputs.

    `torch.autograd.grad(is_grads_batched=True)` makes such gradients.
    """
    return torch._C._functorch.is_legacy_batchedtensor(dy)


def version_of(tensor: torch.Tensor) -> int:
    """Return a number that grows when a tensor is written in place."""
    return tensor._version


def has_integer_matmul() -> bool:
    """Return whether `integer_matmul` exists in this build of PyTorch."""
    return hasattr(torch, "_int_mm")


def integer_matmul(
    x: torch.Tensor, y: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Write the product of two int8 matrices into an int32 matrix `out`.

    Returns:
        `out`.
    """
    return torch._int_mm(x, y, out=out)


def assume(condition: bool | torch.SymBool) -> None:
    """Let a trace assume a condition on a size; raise if it is known false."""
    torch._check(condition)
