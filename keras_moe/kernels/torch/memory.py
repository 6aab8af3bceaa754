"""PyTorch on CPU: the memory of a bank of weights, and of its gradient.

NumPy requests large pages from Linux, PyTorch does not. With pages of two
megabytes instead of four kilobytes, reading the weights of a token's experts
looks up fewer pages. So a bank is moved into NumPy's memory once.

The C library returns large freed buffers to the system, which maps and zeroes
every page again when the next step allocates them. Here the gradient of a
weight is written into the memory of the last one, unless that is still in use.
Keras keeps each gradient until the next step's backward pass, so that this
needs no additional memory. If processes reduce gradients, which frees them
earlier, no memory is kept.
"""

import weakref
from typing import NamedTuple

import keras
import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from keras_moe.types import Tensor

LEAST_BYTES = 1 << 20  # the C library keeps smaller buffers itself
LARGE_BYTES = 1 << 22  # NumPy requests large pages from this size on
ALIGNMENT_BYTES = 64

_memory_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


class _Memory(NamedTuple):
    """Bytes that are lent, and a weak reference to the array over them.

    The array lives as long as a tensor, a view, or another array uses it.
    """

    buffer: np.ndarray
    lent: weakref.ref[np.ndarray]


def empty_gradient(weight: Tensor) -> Tensor:
    """Return an uninitialized contiguous tensor like a weight.

    Its memory is freed when neither the weight nor the gradient is in use.
    """
    small = _num_bytes(weight) < LEAST_BYTES
    if small or weight.device.type != "cpu" or _reduces_gradients():
        return _new(weight)
    # Taken out and put back, so that no two threads get the same memory.
    memory: _Memory | None = _memory_of.pop(weight, None)
    if memory is not None and memory.lent() is not None:
        _memory_of[weight] = memory
        return _new(weight)
    buffer = _buffer_for(weight) if memory is None else memory.buffer
    array = _array_over(buffer, weight)
    _memory_of[weight] = _Memory(buffer, weakref.ref(array))
    return _as_tensor(array, weight)


def settle(variable: keras.Variable) -> None:
    """Move the values of a large weight, which stays the same object."""
    weight = variable.value
    if not isinstance(weight, torch.nn.Parameter):  # it has no values
        return
    if weight.device.type == "cpu" and _num_bytes(weight) >= LARGE_BYTES:
        array = _array_over(_buffer_for(weight), weight)
        weight.data = _as_tensor(array, weight).copy_(weight.data)


def _num_bytes(weight: Tensor) -> int:
    num_bytes: int = weight.numel() * weight.element_size()
    return num_bytes


def _buffer_for(weight: Tensor) -> np.ndarray:
    return np.empty(_num_bytes(weight) + ALIGNMENT_BYTES, np.uint8)


def _array_over(buffer: np.ndarray, weight: Tensor) -> np.ndarray:
    """Return an aligned part of a buffer, as long as a weight."""
    start = -buffer.ctypes.data % ALIGNMENT_BYTES
    return buffer[start : start + _num_bytes(weight)]


def _as_tensor(array: np.ndarray, weight: Tensor) -> Tensor:
    """Return an uninitialized tensor like a weight, over the array."""
    return torch.from_numpy(array).view(weight.dtype).view(weight.shape)


def _new(weight: Tensor) -> Tensor:
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _reduces_gradients() -> bool:
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized()
