"""PyTorch on CPU: the memory of a bank's gradient, used again in each step.

The C library gives large freed buffers back to the system, which maps and
zeroes each page anew when the next step asks for them: at S a sixth of
forward and backward. Here a weight's gradient is written where the last one
was, if nobody holds that any more. Keras keeps each gradient until the next
step's backward pass, so that no more memory is in use than without; where
processes reduce gradients and free them earlier, none is kept.
"""

import sys

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from keras_moe.types import Tensor

LEAST_BYTES = 1 << 20  # smaller ones the C library keeps itself
ALIGNMENT_BYTES = 64
UNUSED = 2  # references to memory that no tensor holds: a name, an argument

_memory_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def empty_gradient(weight: Tensor) -> Tensor:
    """Returns an uninitialised tensor like a weight, contiguous.

    Its memory goes when the weight goes and nobody holds the gradient.
    """
    num_bytes = weight.numel() * weight.element_size()
    small = num_bytes < LEAST_BYTES
    if small or weight.device.type != "cpu" or _reduces_gradients():
        return _new(weight)
    # Taken out and put back, so that no two threads find the same.
    memory = _memory_of.pop(weight, None)
    if memory is None:
        memory = np.empty(num_bytes + ALIGNMENT_BYTES, np.uint8)
    elif sys.getrefcount(memory) > UNUSED:
        _memory_of[weight] = memory
        return _new(weight)
    start = -memory.ctypes.data % ALIGNMENT_BYTES
    lent = torch.from_numpy(memory[start : start + num_bytes])
    _memory_of[weight] = memory
    return lent.view(weight.dtype).view(weight.shape)


def _new(weight):
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _reduces_gradients():
    distributed = torch.distributed
    return distributed.is_available() and distributed.is_initialized()
