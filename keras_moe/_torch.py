"""All that the package uses of PyTorch's private API.

`tests/package/private_api/test_private_torch.py` asserts the effect of each
name. Several functions run in every call of a block: what they use is found
once, here.
"""

import torch
from torch.autograd import forward_ad

_transforms_are_active = torch._C._are_functorch_transforms_active
_graph_task_id = torch._C._current_graph_task_id
_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_has_any_global_hook = torch.nn.modules.module._has_any_global_hook


def has_hooks(module: torch.nn.Module) -> bool:
    """Return whether a call of a module, or the gradients of its call, run
    functions that were registered on it or on all modules."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or _has_any_global_hook()
    )


def is_in_backward() -> bool:
    """Return whether this runs inside of `backward`, by the number of its
    task."""
    return _graph_task_id() != -1


def saves_through_hooks() -> bool:
    """Return whether tensors that are saved for gradients go through hooks,
    as inside of a checkpoint that is not reentrant."""
    return _saved_tensors_hooks(False) is not None


def transforms_run() -> bool:
    """Return whether `torch.func` (`grad`, `vmap`, `jvp` ...) or forward-mode
    differentiation is in effect."""
    return _transforms_are_active() or forward_ad._current_level >= 0


def is_batch_of_gradients(dy: torch.Tensor) -> bool:
    """Return whether `torch.autograd.grad(is_grads_batched=True)` made a
    gradient, which holds those of a batch."""
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
    """Write the product of two int8 matrices into an int32 one, and return
    that."""
    return torch._int_mm(x, y, out=out)


def assume(condition: bool | torch.SymBool) -> None:
    """Let a trace take for granted what it cannot know of a size; raise if a
    known size contradicts."""
    torch._check(condition)
