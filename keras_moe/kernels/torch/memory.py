"""PyTorch on CPU: where a bank of weights lies, and its gradient.

NumPy asks Linux for large pages where PyTorch does not: a token that reads
its experts' weights looks up a page for each two megabytes, not for each four
kilobytes (D1 0.95 of the time). So a bank moves into NumPy's memory once.

The C library gives large freed buffers back to the system, which maps and
zeroes each page anew when the next step asks for them: at S a sixth of
forward and backward. Here a weight's gradient is written where the last one
was, if nobody holds that any more. Keras keeps each gradient until the next
step's backward pass, so that no more memory is in use than without; where
processes reduce gradients and free them earlier, none is kept.
"""

import weakref
from typing import Any, NamedTuple

import keras
import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from keras_moe.types import Tensor

LEAST_BYTES = 1 << 20  # smaller ones the C library keeps itself
LARGE_BYTES = 1 << 22  # from here on NumPy asks for large pages
ALIGNMENT_BYTES = 64

_memory_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class _Memory(NamedTuple):
    """Bytes that are lent out, and a weak reference to the array over them
    that lives as long as a tensor, a view, or an array holds them."""

    buffer: np.ndarray
    lent: Any


def empty_gradient(weight: Tensor) -> Tensor:
    """Returns an uninitialised tensor like a weight, contiguous.

    Its memory goes when the weight goes and nobody holds the gradient.
    """
    small = _num_bytes(weight) < LEAST_BYTES
    if small or weight.device.type != "cpu" or _reduces_gradients():
        return _new(weight)
    # Taken out and put back, so that no two threads find the same.
    memory = _memory_of.pop(weight, None)
    if memory is not None and memory.lent() is not None:
        _memory_of[weight] = memory
        return _new(weight)
    buffer = _buffer_for(weight) if memory is None else memory.buffer
    array = _array_over(buffer, weight)
    _memory_of[weight] = _Memory(buffer, weakref.ref(array))
    return _as_tensor(array, weight)


def settle(variable: keras.Variable) -> None:
    """Moves a weight's values; the parameter stays the same object."""
    weight = variable.value
    if not isinstance(weight, torch.nn.Parameter):  # one without values
        return
    if weight.device.type == "cpu" and _num_bytes(weight) >= LARGE_BYTES:
        array = _array_over(_buffer_for(weight), weight)
        weight.data = _as_tensor(array, weight).copy_(weight.data)


def _num_bytes(weight):
    return weight.numel() * weight.element_size()


def _buffer_for(weight):
    return np.empty(_num_bytes(weight) + ALIGNMENT_BYTES, np.uint8)


def _array_over(buffer, weight):
    """An aligned part of the bytes, as long as a weight."""
    start = -buffer.ctypes.data % ALIGNMENT_BYTES
    return buffer[start : start + _num_bytes(weight)]


def _as_tensor(array, weight):
    """An uninitialised tensor like a weight, which holds the array."""
    return torch.from_numpy(array).view(weight.dtype).view(weight.shape)


def _new(weight):
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _reduces_gradients():
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized()
