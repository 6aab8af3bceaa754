"""Quantises the kernels of an `Expert`, each expert's by itself.

E experts, D inputs and F outputs of a kernel, G blocks of D with a scale each.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_moe import _keras, kernels
from keras_moe.kernels.quantized import ZERO_NIBBLE
from keras_moe.layers import quantization

NAMES = ("up", "gate", "down")
FOUR_BITS: dict[str, Any] = {"value_range": (-8, 7), "output_dtype": "int8"}


def quantize(experts, mode: str, config) -> None:
    """Puts integers and scales in the place of a bank's kernels.

    Args:
        experts: a built `Expert`.
        mode: "int8" or "int4".
        config: `keras.quantizers.Int8QuantizationConfig` or `Int4...`.

    Raises:
        ValueError: for another mode, and for quantizers that do not suit
            stacked kernels.
    """
    quantization.check_mode(mode)
    block = quantization.block_size_of(experts, config)
    rounding_of(config)  # raises where it must, before anything is changed
    for name in NAMES:
        kernel = getattr(experts, f"{name}_kernel", None)
        if kernel is None:
            continue
        values, scale = _integers(_array(kernel), mode, config, block)
        shape = kernel.shape
        delattr(experts, f"{name}_kernel")
        kernel = add_kernel(experts, name, shape, mode, block)
        setattr(experts, f"{name}_kernel", kernel)
        kernel.assign(values)
        getattr(experts, f"{name}_scale").assign(scale)
    experts.quantization_config = config
    quantization.set_policy(experts, mode, block)


def build_kernel(experts, name: str, shape):
    """Adds the weights of a kernel of a bank that was quantised before."""
    mode = experts.quantization_mode
    quantization.check_mode(mode)
    block = quantization.block_size_of(experts, experts.quantization_config)
    return add_kernel(experts, name, shape, mode, block)


def add_kernel(experts, name: str, shape, mode: str, block: int | None):
    """Adds the integers and `{name}_scale` for a kernel `(E, D, F)`; returns
    the integers."""
    num_experts, depth, width = shape
    stored = depth if mode == "int8" else -(-depth // 2)
    kernel = experts.add_weight(
        name=f"{name}_kernel",
        shape=(num_experts, stored, width),
        initializer="zeros",
        dtype="int8" if mode == "int8" else "uint8",
        trainable=False,
    )
    scale = experts.add_weight(
        name=f"{name}_scale",
        shape=(num_experts, -(-depth // (block or depth)), width),
        initializer="ones",
        trainable=False,
    )
    setattr(experts, f"{name}_scale", scale)
    _keras.mark_quantized(experts)
    return kernel


def kernel_of(experts, name: str) -> kernels.QuantizedKernel | None:
    """Returns a kernel as `kernels` takes it, or None without one."""
    values = getattr(experts, f"{name}_kernel")
    if values is None:
        return None
    scale = getattr(experts, f"{name}_scale")
    config = experts.quantization_config
    block = None
    if scale.shape[1] > 1:
        block = quantization.block_size_of(experts, config)
    rounding = quantization.default_rounding(experts.quantization_mode)
    if config is not None:
        rounding = rounding_of(config)
    return kernels.QuantizedKernel(values, scale, rounding, block)


def rounding_of(config) -> kernels.Rounding | None:
    """Returns how a config's `activation_quantizer` rounds rows.

    Raises:
        ValueError: for another quantizer than Keras's `AbsMaxQuantizer`.
    """
    quantizer = config.activation_quantizer
    if quantizer is None:
        return None
    if isinstance(quantizer, keras.quantizers.AbsMaxQuantizer):
        low, high = quantizer.value_range
        return kernels.Rounding(low, high, quantizer.epsilon)
    raise ValueError(
        "`activation_quantizer` must be None or keras.quantizers."
        "AbsMaxQuantizer where there are experts: the kernels round each row "
        f"by its largest element. Received: {quantizer!r}. Pass None for "
        "weights alone."
    )


def _array(kernel) -> np.ndarray:
    tensor = ops.stop_gradient(ops.convert_to_tensor(kernel))
    return ops.convert_to_numpy(ops.cast(tensor, "float32"))


def _integers(bank, mode, config, block):
    """Returns what `add_kernel` adds weights for, of floats `(E, D, F)`."""
    quantizer = config.weight_quantizer
    if quantizer is None:
        options = {} if mode == "int8" else FOUR_BITS
        quantizer = keras.quantizers.AbsMaxQuantizer(axis=0, **options)
    pairs = [_one_expert(matrix, quantizer, block) for matrix in bank]
    values = np.stack([values for values, _ in pairs])
    scale = np.stack([scale for _, scale in pairs])
    return (values if mode == "int8" else _packed(values)), scale


def _one_expert(matrix, quantizer, block):
    """Returns int8 `(D, F)` and its scales `(G, F)`."""
    depth, width = matrix.shape
    block = block or depth
    blocks = -(-depth // block)
    padded = np.zeros((blocks * block, width), "float32")
    padded[:depth] = matrix
    columns = padded.reshape(blocks, block, width).swapaxes(0, 1)
    values, divisor = quantizer(columns.reshape(block, -1), to_numpy=True)
    divisor = ops.convert_to_numpy(divisor)
    if divisor.shape != (1, blocks * width):
        raise ValueError(
            "`weight_quantizer` must give each output channel of a (D, F) "
            f"matrix one scale. Received: {quantizer!r}, scales of shape "
            f"{divisor.shape} for {blocks * width} channels. Pass "
            "keras.quantizers.AbsMaxQuantizer(axis=0)."
        )
    values = ops.convert_to_numpy(values).reshape(block, blocks, width)
    values = values.swapaxes(0, 1).reshape(-1, width)[:depth]
    return values, (1 / divisor).reshape(blocks, width)


def _packed(values):
    """Two rows a byte, of integers -8 ... 7 `(E, D, F)`; see `kernels`."""
    num_experts, depth, width = values.shape
    nibbles = np.full((num_experts, depth + depth % 2, width), ZERO_NIBBLE)
    nibbles[:, :depth] += values
    low, high = np.split(nibbles, 2, axis=1)
    return (low + 16 * high).astype("uint8")
