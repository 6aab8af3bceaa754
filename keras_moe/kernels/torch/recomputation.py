"""PyTorch: forward passes that a checkpoint repeats in the backward pass.

`torch.utils.checkpoint` runs a function again during `backward`. By then the
function has changed the state that it reads, so that a layer whose state
decides what it computes would compute something else. PyTorch does not report
which call is repeated, but it restores its global random state first. So each
call inside a checkpoint draws a random number, which is the key of the value
that it read the first time.
"""

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch

from keras_moe._torch import is_in_backward, saves_through_hooks
from keras_moe.types import Tensor

MOST_KEPT = 2**14  # values of a few numbers each
_KEPT: OrderedDict[int, Tensor] = OrderedDict()  # by the number drawn


class _Thread(threading.local):
    pure = False  # whether all state enters and leaves as arguments


_THREAD = _Thread()


def is_recomputing() -> bool:
    """Return whether this runs inside `backward`."""
    if _THREAD.pure or torch.compiler.is_compiling():
        return False
    return is_in_backward()


def first_value(read: Callable[[], Tensor]) -> Tensor:
    """Return what the first run read; kept only for calls in a checkpoint."""
    if not may_be_repeated():
        return read()
    number = int(torch.randint(2**62, (), device="cpu"))
    if is_recomputing():
        return _KEPT[number] if number in _KEPT else read()
    value = _KEPT[number] = read().detach().clone()
    if len(_KEPT) > MOST_KEPT:
        _KEPT.popitem(last=False)
    return value


def may_be_repeated() -> bool:
    """Return whether this may run inside a checkpoint.

    Inside a checkpoint, tensors that are saved go through its hooks, or no
    gradients are recorded (the reentrant kind).
    """
    if _THREAD.pure or torch.compiler.is_compiling():
        return False
    if not torch.is_grad_enabled() or is_recomputing():
        return True
    return saves_through_hooks()


def repeatable(pure: bool) -> contextlib.AbstractContextManager[None]:
    """Return a context that holds in this thread."""
    return _within(pure)


@contextlib.contextmanager
def _within(pure: bool) -> Iterator[None]:
    before, _THREAD.pure = _THREAD.pure, pure
    try:
        yield
    finally:
        _THREAD.pure = before
