"""PyTorch: `keras.ops` with fewer checks, for operations of every call.

Before each operation Keras searches for symbolic tensors, variables, and
types, which takes longer than a small operation itself. Functions that are not
in this file are those of `keras.ops`.
"""

from collections.abc import Sequence
from typing import Any

import keras
import torch

from keras_moe.types import Tensor

# Whether Keras would move tensors from the host to an accelerator.
ACCELERATED = torch.accelerator.is_available()


def __getattr__(name: str) -> Any:
    return getattr(keras.ops, name)


def convert_to_tensor(x: Any, dtype: Any = None) -> Tensor:
    """Return a tensor on Keras's device; a tensor there stays as it is."""
    if dtype is None and not ACCELERATED:
        if type(x) is torch.Tensor:
            return x
        if isinstance(x, keras.Variable):
            return x.value
    return keras.ops.convert_to_tensor(x, dtype=dtype)


def cast(x: Any, dtype: Any) -> Tensor:
    """Cast a tensor; `dtype` is a name or a `torch.dtype`."""
    if not isinstance(x, torch.Tensor):
        return keras.ops.cast(x, dtype)
    if not isinstance(dtype, torch.dtype):
        dtype = getattr(torch, dtype)
    return x.to(dtype)


def shape(x: Tensor) -> tuple[int, ...]:
    """Return the dimensions, integers or symbols of a program."""
    return tuple(x.shape)


def stop_gradient(x: Any) -> Tensor:
    """Detach a tensor."""
    return convert_to_tensor(x).detach()


def zeros(shape: Sequence[int], dtype: str = "float32") -> Tensor:
    """Return zeros; `dtype` is a name."""
    if ACCELERATED:
        return keras.ops.zeros(shape, dtype=dtype)
    return torch.zeros(shape, dtype=getattr(torch, dtype))


def argsort(x: Any) -> Tensor:
    """Sort the last axis stably; return int32 indices."""
    x = convert_to_tensor(x)
    if torch.onnx.is_in_onnx_export():
        # ONNX has no stable sort, but its TopK keeps equal values in order.
        return torch.topk(-x, x.shape[-1], dim=-1).indices.to(torch.int32)
    return torch.argsort(x, stable=True).to(torch.int32)


def reshape(x: Any, shape: Sequence[int]) -> Tensor:
    """Reshape a tensor; `shape` is a tuple of integers."""
    return torch.reshape(convert_to_tensor(x), shape)


def expand_dims(x: Any, axis: int) -> Tensor:
    """Insert one axis."""
    return torch.unsqueeze(convert_to_tensor(x), axis)


def where(condition: Tensor, x: Tensor, y: Any) -> Tensor:
    """Select from `x` or `y`, which may be a number, in the dtype of `x`."""
    if isinstance(condition, torch.Tensor) and isinstance(x, torch.Tensor):
        return torch.where(condition, x, y)
    return keras.ops.where(condition, x, y)


def sum(x: Any, axis: int | None = None, keepdims: bool = False) -> Tensor:
    """Sum floats; Keras sums other dtypes, by its own rules."""
    if not (isinstance(x, torch.Tensor) and x.is_floating_point()):
        return keras.ops.sum(x, axis, keepdims)
    return torch.sum(x, dim=axis, keepdim=keepdims)


def maximum(x: Any, y: Any) -> Tensor:
    """Return the larger of each; clamp a tensor if `y` is a float."""
    if isinstance(x, torch.Tensor) and isinstance(y, float):
        return torch.clamp(x, min=y)
    return keras.ops.maximum(x, y)


def softmax(x: Any, axis: int = -1) -> Tensor:
    """Use PyTorch's softmax, which does not warn about an axis of length 1."""
    return torch.softmax(convert_to_tensor(x), dim=axis)
