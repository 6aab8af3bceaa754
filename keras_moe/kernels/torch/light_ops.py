"""PyTorch: `keras.ops` for what runs in every call of a block.

Keras's look for symbolic tensors, variables and types before each operation,
10 to 30 microseconds for two of work: of the hundred that a block makes. What
is not here is Keras's.
"""

import keras
import torch

from keras_moe.types import Tensor

# Where Keras would move tensors of the host to, if anywhere.
ACCELERATED = torch.accelerator.is_available()


def __getattr__(name):
    return getattr(keras.ops, name)


def convert_to_tensor(x, dtype=None) -> Tensor:
    """As it is where it is a tensor already, and where it should be."""
    if dtype is None and not ACCELERATED:
        if type(x) is torch.Tensor:
            return x
        if isinstance(x, keras.Variable):
            return x.value
    return keras.ops.convert_to_tensor(x, dtype=dtype)


def cast(x, dtype) -> Tensor:
    """`dtype` is a name or PyTorch's own."""
    if not isinstance(x, torch.Tensor):
        return keras.ops.cast(x, dtype)
    if not isinstance(dtype, torch.dtype):
        dtype = getattr(torch, dtype)
    return x.to(dtype)


def shape(x) -> tuple:
    """Integers, or symbols of a program."""
    return tuple(x.shape)


def stop_gradient(x) -> Tensor:
    """Of a tensor."""
    return convert_to_tensor(x).detach()


def zeros(shape, dtype="float32") -> Tensor:
    """`dtype` is a name."""
    if ACCELERATED:
        return keras.ops.zeros(shape, dtype=dtype)
    return torch.zeros(shape, dtype=getattr(torch, dtype))


def argsort(x) -> Tensor:
    """Along the last axis; of equal ones the first stays the first. int32."""
    x = convert_to_tensor(x)
    if torch.onnx.is_in_onnx_export():
        # ONNX has no stable sort. Its TopK puts the first of equal ones first.
        return torch.topk(-x, x.shape[-1], dim=-1).indices.to(torch.int32)
    return torch.argsort(x, stable=True).to(torch.int32)


def reshape(x, shape) -> Tensor:
    """The shape is a tuple of integers."""
    return torch.reshape(convert_to_tensor(x), shape)


def expand_dims(x, axis) -> Tensor:
    """One axis alone."""
    return torch.unsqueeze(convert_to_tensor(x), axis)


def where(condition, x, y) -> Tensor:
    """`y` may be a number; the dtype is that of `x`."""
    if isinstance(condition, torch.Tensor) and isinstance(x, torch.Tensor):
        return torch.where(condition, x, y)
    return keras.ops.where(condition, x, y)


def sum(x, axis=None, keepdims=False) -> Tensor:
    """Of floats; others have rules of their own in Keras."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
        return keras.ops.sum(x, axis, keepdims)
    return torch.sum(x, dim=axis, keepdim=keepdims)


def maximum(x, y) -> Tensor:
    """Of a tensor and a number it is a clamp."""
    if isinstance(x, torch.Tensor) and isinstance(y, float):
        return torch.clamp(x, min=y)
    return keras.ops.maximum(x, y)


def softmax(x, axis=-1) -> Tensor:
    """Of a float tensor; Keras warns where the axis is one long."""
    return torch.softmax(convert_to_tensor(x), dim=axis)
